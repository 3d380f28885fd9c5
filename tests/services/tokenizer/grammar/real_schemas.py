"""Schemas of the kinds that people really send: package manifests, CI and API configurations, OpenAPI components,
what pydantic makes of classes, function parameters, data records. Written for this test, in those idioms."""

# ruff: noqa: E501 - a line for each schema

import itertools
import random
from collections.abc import Iterator
from typing import Any

Json = Any
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_2020 = "https://json-schema.org/draft/2020-12/schema"
SEMVER = r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?(?:\+[0-9A-Za-z-]+)?$"
STRINGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
STRING_MAP = {"type": "object", "additionalProperties": {"type": "string"}}


def every() -> list[tuple[str, Json]]:
    """(name, schema), some two hundred."""
    sources = (manifests(), ci(), api(), pydantic(), functions(), records(), extraction(), infrastructure())
    return list(itertools.chain(*sources))


def manifests() -> Iterator[tuple[str, Json]]:
    person = {
        "type": ["object", "string"],
        "required": ["name"],
        "properties": {
            "name": {"type": "string"},
            "url": {"type": "string", "format": "uri"},
            "email": {"type": "string", "format": "email"},
        },
    }
    npm = {
        "$schema": DRAFT_7,
        "title": "package.json",
        "definitions": {
            "person": person,
            "dependency": {
                "description": "name to version range",
                "type": "object",
                "additionalProperties": {"type": "string"},
            },
            "licence": {"anyOf": [{"type": "string"}, {"enum": ["MIT", "Apache-2.0", "BSD-3-Clause", "UNLICENSED"]}]},
            "exports": {
                "anyOf": [
                    {"type": ["string", "null"], "pattern": "^\\./"},
                    {
                        "type": "object",
                        "properties": {
                            name: {"$ref": "#/definitions/exports"} for name in ("import", "require", "default")
                        },
                        "additionalProperties": False,
                    },
                ]
            },
        },
        "type": "object",
        "patternProperties": {"^_": {}},
        "properties": {
            "name": {
                "type": "string",
                "maxLength": 214,
                "minLength": 1,
                "pattern": "^(?:@[a-z0-9-~][a-z0-9-._~]*/)?[a-z0-9-~][a-z0-9-._~]*$",
            },
            "version": {"type": "string", "pattern": SEMVER},
            "description": {"type": "string"},
            "keywords": STRINGS,
            "homepage": {"type": "string", "format": "uri"},
            "bugs": {
                "type": ["object", "string"],
                "properties": {
                    "url": {"type": "string", "format": "uri"},
                    "email": {"type": "string", "format": "email"},
                },
            },
            "license": {"$ref": "#/definitions/licence"},
            "author": {"$ref": "#/definitions/person"},
            "contributors": {"type": "array", "items": {"$ref": "#/definitions/person"}},
            "files": {"type": "array", "items": {"type": "string"}},
            "main": {"type": "string"},
            "type": {"type": "string", "default": "commonjs", "enum": ["commonjs", "module"]},
            "exports": {"$ref": "#/definitions/exports"},
            "bin": {"type": ["string", "object"], "additionalProperties": {"type": "string"}},
            "scripts": {"type": "object", "additionalProperties": {"type": "string"}},
            "dependencies": {"$ref": "#/definitions/dependency"},
            "devDependencies": {"$ref": "#/definitions/dependency"},
            "engines": {
                "type": "object",
                "properties": {"node": {"type": "string"}},
                "additionalProperties": {"type": "string"},
            },
            "os": {"type": "array", "items": {"type": "string"}},
            "private": {"anyOf": [{"type": "boolean"}, {"enum": ["false", "true"]}]},
        },
        "anyOf": [
            {"not": {"required": ["bundledDependencies", "bundleDependencies"]}},
            {"required": ["bundleDependencies"]},
        ],
    }
    yield "npm", npm
    for required in (["name"], ["name", "version"], ["name", "version", "license", "author"]):
        yield f"npm-{len(required)}", {**npm, "required": required}
    yield "npm-closed", {**npm, "additionalProperties": False, "required": ["name", "version"]}
    yield (
        "pyproject",
        {
            "$schema": DRAFT_7,
            "type": "object",
            "required": ["name"],
            "dependencies": {
                "version": {
                    "not": {"required": ["dynamic"], "properties": {"dynamic": {"contains": {"const": "version"}}}}
                }
            },
            "properties": {
                "name": {"type": "string", "pattern": "^([a-zA-Z\\d]|[a-zA-Z\\d][\\w.-]*[a-zA-Z\\d])$"},
                "version": {"type": "string", "pattern": "^v?\\d+(\\.\\d+)*((a|b|rc)\\d+)?$"},
                "requires-python": {"type": "string"},
                "license": {
                    "oneOf": [
                        {
                            "type": "object",
                            "required": ["file"],
                            "properties": {"file": {"type": "string"}},
                            "additionalProperties": False,
                        },
                        {
                            "type": "object",
                            "required": ["text"],
                            "properties": {"text": {"type": "string"}},
                            "additionalProperties": False,
                        },
                        {"type": "string"},
                    ]
                },
                "authors": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"name": {"type": "string"}, "email": {"type": "string", "format": "email"}},
                        "additionalProperties": False,
                    },
                },
                "dynamic": {
                    "type": "array",
                    "items": {"enum": ["version", "description", "readme"]},
                    "uniqueItems": True,
                },
                "dependencies": {"type": "array", "items": {"type": "string"}},
                "optional-dependencies": {
                    "type": "object",
                    "propertyNames": {"pattern": "^[a-z\\d]+(-[a-z\\d]+)*$"},
                    "additionalProperties": {"type": "array", "items": {"type": "string"}},
                },
                "urls": {"type": "object", "additionalProperties": {"type": "string", "format": "uri"}},
            },
            "additionalProperties": False,
        },
    )
    for edition, kinds in itertools.product(["2018", "2021"], [["lib"], ["bin", "lib"]]):
        yield f"cargo-{edition}-{len(kinds)}", {
            "type": "object",
            "properties": {
                "package": {
                    "type": "object",
                    "properties": {"name": {"type": "string", "minLength": 1}, "version": {"type": "string", "pattern": SEMVER}, "edition": {"const": edition}, "crate-type": {"type": "array", "items": {"enum": kinds}, "minItems": 1}},
                    "required": ["name", "version", "edition"],
                },
                "dependencies": {"type": "object", "additionalProperties": {"oneOf": [{"type": "string"}, {"type": "object", "properties": {"version": {"type": "string"}, "features": STRINGS, "optional": {"type": "boolean"}}, "additionalProperties": False}]}},
                "features": {"type": "object", "patternProperties": {"^[a-z_][a-z0-9_-]*$": {"type": "array", "items": {"type": "string"}}}, "additionalProperties": False},
            },
            "required": ["package"],
        }  # fmt: skip
    yield "tsconfig", {
        "$schema": DRAFT_7,
        "allOf": [{"$ref": "#/definitions/compilerOptions"}, {"$ref": "#/definitions/files"}],
        "anyOf": [{"required": ["files"]}, {"required": ["include"]}, {"required": ["references"]}],
        "definitions": {
            "compilerOptions": {"properties": {"compilerOptions": {"type": ["object", "null"], "properties": {
                "target": {"anyOf": [{"enum": ["ES5", "ES2020", "ESNext"]}, {"pattern": "^([Ee][Ss]([356]|20(1[56789]|2[01234])))$"}], "type": "string"},
                "strict": {"type": ["boolean", "null"], "default": False},
                "lib": {"type": ["array", "null"], "uniqueItems": True, "items": {"type": ["string", "null"], "anyOf": [{"enum": ["ES5", "DOM", "ScriptHost"]}, {"pattern": "^[Ee][Ss]5$"}]}},
                "paths": {"type": "object", "additionalProperties": {"type": "array", "uniqueItems": True, "items": {"type": "string"}}},
            }}}},
            "files": {"properties": {"files": STRINGS, "include": STRINGS, "references": {"type": "array", "uniqueItems": True, "items": {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}}}},
        },
        "type": "object",
    }  # fmt: skip
    yield "eslint", {
        "definitions": {"rule": {"oneOf": [{"$ref": "#/definitions/severity"}, {"type": "array", "minItems": 1, "items": [{"$ref": "#/definitions/severity"}], "additionalItems": True}]}, "severity": {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 2}, {"type": "string", "enum": ["off", "warn", "error"]}]}},
        "$schema": DRAFT_7,
        "type": "object",
        "properties": {"env": {"type": "object", "properties": {"browser": {"type": "boolean"}, "node": {"type": "boolean"}}}, "extends": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, "rules": {"type": "object", "additionalProperties": {"$ref": "#/definitions/rule"}}, "root": {"type": "boolean"}},
    }  # fmt: skip


def ci() -> Iterator[tuple[str, Json]]:
    step = {
        "type": "object",
        "properties": {"id": {"type": "string"}, "name": {"type": "string"}, "uses": {"type": "string"}, "run": {"type": "string"}, "if": {"type": ["boolean", "number", "string"]}, "with": {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}, "env": STRING_MAP, "timeout-minutes": {"type": "number", "minimum": 1}},
        "additionalProperties": False,
        "dependencies": {"working-directory": ["run"]},
    }  # fmt: skip
    for variant, steps in {
        "oneOf": {**step, "oneOf": [{"required": ["uses"]}, {"required": ["run"]}]},
        "anyOf": {**step, "anyOf": [{"required": ["uses"]}, {"required": ["run"]}]},
        "plain": step,
    }.items():
        for on in (
            {"enum": ["push", "pull_request"]},
            {
                "type": "array",
                "items": {"enum": ["push", "pull_request", "release"]},
                "minItems": 1,
                "uniqueItems": True,
            },
            {
                "type": "object",
                "minProperties": 1,
                "properties": {
                    "push": {"type": ["object", "null"], "properties": {"branches": STRINGS}},
                    "schedule": {
                        "type": "array",
                        "items": {
                            "type": "object",
                            "properties": {"cron": {"type": "string", "pattern": "^(\\*|\\d+)( (\\*|\\d+)){4}$"}},
                            "required": ["cron"],
                        },
                    },
                },
                "additionalProperties": False,
            },
        ):
            yield f"workflow-{variant}-{len(on)}", {
                "$schema": DRAFT_7,
                "type": "object",
                "properties": {
                    "name": {"type": "string"},
                    "on": on,
                    "jobs": {"type": "object", "patternProperties": {"^[_a-zA-Z][a-zA-Z0-9_-]*$": {"type": "object", "properties": {"runs-on": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}, "needs": {"oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}, "steps": {"type": "array", "items": steps, "minItems": 1}, "strategy": {"type": "object", "properties": {"fail-fast": {"type": "boolean", "default": True}, "max-parallel": {"type": "number"}}}}, "required": ["runs-on", "steps"], "additionalProperties": False}}, "minProperties": 1, "additionalProperties": False},
                },
                "required": ["on", "jobs"],
                "additionalProperties": False,
            }  # fmt: skip
    for when in (["on_success", "manual"], ["always", "never", "delayed"]):
        yield f"gitlab-{when[0]}", {
            "type": "object",
            "properties": {"stages": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "minItems": 1}, "variables": {"type": "object", "patternProperties": {".*": {"type": ["string", "integer"]}}}},
            "additionalProperties": {"type": "object", "required": ["script"], "properties": {"script": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}, "minItems": 1}]}, "when": {"enum": when}, "start_in": {"type": "string", "minLength": 1}, "retry": {"type": "integer", "minimum": 0, "maximum": 2}}, "if": {"properties": {"when": {"const": "delayed"}}, "required": ["when"]}, "then": {"required": ["start_in"]}, "additionalProperties": False},
        }  # fmt: skip
    for interval in ("daily", "weekly", "monthly"):
        yield f"dependabot-{interval}", {
            "$schema": DRAFT_7,
            "type": "object",
            "required": ["version", "updates"],
            "additionalProperties": False,
            "properties": {"version": {"const": 2}, "updates": {"type": "array", "minItems": 1, "uniqueItems": True, "items": {"type": "object", "required": ["package-ecosystem", "directory", "schedule"], "properties": {"package-ecosystem": {"enum": ["npm", "pip", "docker", "github-actions"]}, "directory": {"type": "string"}, "schedule": {"type": "object", "required": ["interval"], "properties": {"interval": {"const": interval}, "day": {"enum": ["monday", "friday"]}, "time": {"type": "string", "pattern": "^([01]?[0-9]|2[0-3]):[0-5][0-9]$"}}}, "open-pull-requests-limit": {"type": "integer", "minimum": 0}}}}},
        }  # fmt: skip


def api() -> Iterator[tuple[str, Json]]:
    """OpenAPI components, with its own keywords among the standard's."""
    error = {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"type": "integer", "format": "int32"}, "message": {"type": "string"}},
    }
    yield "error", error
    yield "problem", {"type": "object", "properties": {"type": {"type": "string", "format": "uri-reference", "default": "about:blank"}, "title": {"type": "string"}, "status": {"type": "integer", "format": "int32", "minimum": 100, "maximum": 599}, "detail": {"type": "string"}, "instance": {"type": "string", "format": "uri"}}, "additionalProperties": True}  # fmt: skip
    components = {
        "Pet": {"type": "object", "required": ["name", "photoUrls"], "properties": {"id": {"type": "integer", "format": "int64", "example": 10}, "name": {"type": "string", "example": "doggie"}, "category": {"$ref": "#/components/schemas/Category"}, "photoUrls": {"type": "array", "xml": {"wrapped": True}, "items": {"type": "string"}}, "status": {"type": "string", "description": "pet status", "enum": ["available", "pending", "sold"]}}},
        "Category": {"type": "object", "properties": {"id": {"type": "integer", "format": "int64"}, "name": {"type": "string"}, "parent": {"$ref": "#/components/schemas/Category"}}, "xml": {"name": "category"}},
        "Order": {"type": "object", "properties": {"id": {"type": "integer"}, "quantity": {"type": "integer", "format": "int32", "exclusiveMinimum": 0}, "shipDate": {"type": "string", "format": "date-time"}, "complete": {"type": "boolean", "default": False}, "total": {"type": "number", "multipleOf": 0.01, "minimum": 0}}},
        "Cat": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"type": "object", "properties": {"huntingSkill": {"type": "string", "enum": ["lazy", "aggressive"]}}, "required": ["huntingSkill"]}]},
        "Dog": {"allOf": [{"$ref": "#/components/schemas/Pet"}, {"type": "object", "properties": {"packSize": {"type": "integer", "minimum": 0, "default": 0}}, "required": ["packSize"]}]},
        "Animal": {"oneOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}], "discriminator": {"propertyName": "petType"}},
        "Page": {"type": "object", "required": ["items", "total"], "properties": {"items": {"type": "array", "items": {"$ref": "#/components/schemas/Pet"}, "maxItems": 100}, "total": {"type": "integer", "minimum": 0}, "next": {"type": ["string", "null"], "format": "uri"}}},
        "Payment": {"oneOf": [{"type": "object", "required": ["kind", "iban"], "properties": {"kind": {"const": "sepa"}, "iban": {"type": "string", "pattern": "^[A-Z]{2}\\d{2}[A-Z0-9]{11,30}$"}}, "additionalProperties": False}, {"type": "object", "required": ["kind", "number", "expiry"], "properties": {"kind": {"const": "card"}, "number": {"type": "string", "pattern": "^\\d{16}$"}, "expiry": {"type": "string", "pattern": "^(0[1-9]|1[0-2])/\\d{2}$"}}, "additionalProperties": False}], "discriminator": {"propertyName": "kind"}},
    }  # fmt: skip
    for name in components:
        yield f"openapi-{name}", {"$ref": f"#/components/schemas/{name}", "components": {"schemas": components}}
    for name, bound in itertools.product(["Pet", "Order", "Payment"], [1, 5]):
        yield f"openapi-list-{name}-{bound}", {"type": "array", "minItems": bound, "maxItems": 2 * bound, "items": {"$ref": f"#/components/schemas/{name}"}, "components": {"schemas": components}}  # fmt: skip
    yield "jsonrpc", {
        "oneOf": [{"$ref": "#/definitions/success"}, {"$ref": "#/definitions/error"}],
        "definitions": {
            "common": {"type": "object", "required": ["id", "jsonrpc"], "properties": {"id": {"type": ["string", "integer", "null"]}, "jsonrpc": {"enum": ["2.0"]}}, "not": {"required": ["result", "error"]}},
            "success": {"allOf": [{"$ref": "#/definitions/common"}, {"required": ["result"]}], "properties": {"result": {}}},
            "error": {"allOf": [{"$ref": "#/definitions/common"}, {"required": ["error"], "properties": {"error": {"type": "object", "required": ["code", "message"], "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": {}}}}}]},
        },
    }  # fmt: skip
    yield "cloudevent", {"$schema": DRAFT_7, "type": "object", "properties": {"id": {"type": "string", "minLength": 1}, "source": {"type": "string", "format": "uri-reference", "minLength": 1}, "specversion": {"type": "string", "minLength": 1}, "type": {"type": "string", "minLength": 1}, "datacontenttype": {"type": ["string", "null"], "minLength": 1}, "time": {"type": ["string", "null"], "format": "date-time", "minLength": 1}, "data": {"type": ["object", "string", "number", "array", "boolean", "null"]}, "data_base64": {"type": ["string", "null"], "contentEncoding": "base64"}}, "required": ["id", "source", "specversion", "type"]}  # fmt: skip
    for version in ("3.0.3", "3.1.0"):
        yield f"openapi-info-{version}", {"$schema": DRAFT_2020, "type": "object", "properties": {"openapi": {"type": "string", "pattern": f"^{version[:3]}\\.\\d(-.+)?$".replace("3.", "3\\.")}, "info": {"type": "object", "properties": {"title": {"type": "string"}, "version": {"type": "string"}, "contact": {"type": "object", "properties": {"email": {"type": "string", "format": "email"}}}}, "required": ["title", "version"], "patternProperties": {"^x-": True}, "unevaluatedProperties": False}, "servers": {"type": "array", "items": {"type": "object", "properties": {"url": {"type": "string"}}, "required": ["url"]}}}, "required": ["openapi", "info"], "patternProperties": {"^x-": True}, "unevaluatedProperties": False}  # fmt: skip


def pydantic() -> Iterator[tuple[str, Json]]:
    """What pydantic makes of models: `anyOf` with null, `$defs`, `const` tags, titles everywhere."""
    fields: dict[str, Json] = {
        "optional": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None, "title": "Optional"},
        "bounded": {"type": "integer", "exclusiveMinimum": 0, "maximum": 120, "title": "Age"},
        "floats": {"type": "number", "minimum": -90, "maximum": 90, "title": "Latitude"},
        "when": {"type": "string", "format": "date-time", "title": "When"},
        "uuid": {"type": "string", "format": "uuid"},
        "literal": {"enum": ["low", "mid", "high"], "type": "string"},
        "nested": {"$ref": "#/$defs/Inner"},
        "several": {"type": "array", "items": {"$ref": "#/$defs/Inner"}, "title": "Several"},
        "mapping": {"type": "object", "additionalProperties": {"$ref": "#/$defs/Inner"}},
        "pair": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        "set": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        "short": {"type": "string", "minLength": 1, "maxLength": 80},
        "tagged": {"oneOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}], "discriminator": {"propertyName": "kind", "mapping": {"circle": "#/$defs/Circle", "square": "#/$defs/Square"}}},
        "untagged": {"anyOf": [{"$ref": "#/$defs/Circle"}, {"$ref": "#/$defs/Square"}, {"type": "null"}]},
        "tree": {"$ref": "#/$defs/Tree"},
        "decimal": {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}]},
    }  # fmt: skip
    fields["decimal"] = {"anyOf": [{"type": "number"}, {"type": "string", "pattern": "^[+-]?\\d+(\\.\\d+)?$"}]}
    defs: dict[str, Json] = {
        "Inner": {"type": "object", "title": "Inner", "properties": {"x": {"type": "integer"}, "y": {"type": "number", "default": 0}}, "required": ["x"]},
        "Circle": {"type": "object", "properties": {"kind": {"const": "circle", "type": "string"}, "radius": {"type": "number", "exclusiveMinimum": 0}}, "required": ["kind", "radius"], "additionalProperties": False},
        "Square": {"type": "object", "properties": {"kind": {"const": "square", "type": "string"}, "side": {"type": "number"}}, "required": ["kind", "side"], "additionalProperties": False},
        "Tree": {"type": "object", "properties": {"value": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}, "parent": {"anyOf": [{"$ref": "#/$defs/Tree"}, {"type": "null"}]}}, "required": ["value", "children"], "additionalProperties": False},
    }  # fmt: skip
    for name, field in fields.items():
        yield f"model-{name}", {"$defs": defs, "title": "Model", "type": "object", "properties": {name: field}, "required": [name]}  # fmt: skip
    draw = random.Random(7)
    for number in range(40):
        chosen = draw.sample(sorted(fields), draw.randint(3, 9))
        yield (
            f"model-{number}",
            {
                "$defs": defs,
                "title": "Model",
                "type": "object",
                "properties": {name: fields[name] for name in chosen},
                "required": chosen[: draw.randint(0, len(chosen))],
                **({"additionalProperties": False} if draw.random() < 0.5 else {}),
            },
        )


def functions() -> Iterator[tuple[str, Json]]:
    """Parameters of functions, strict as OpenAI asks and lax."""
    parameters: dict[str, dict[str, Json]] = {
        "weather": {"location": {"type": "string", "description": "City and country"}, "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]}, "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 14}},
        "search": {"query": {"type": "string", "minLength": 1}, "filters": {"type": "array", "items": {"type": "object", "properties": {"field": {"type": "string"}, "op": {"enum": ["eq", "lt", "gt"]}, "value": {"type": ["string", "number", "boolean"]}}, "required": ["field", "op", "value"], "additionalProperties": False}}, "limit": {"type": "integer", "default": 10}},
        "email": {"to": {"type": "array", "items": {"type": "string", "format": "email"}, "minItems": 1}, "subject": {"type": "string", "maxLength": 200}, "body": {"type": "string"}, "cc": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]}},
        "calendar": {"start": {"type": "string", "format": "date-time"}, "minutes": {"type": "integer", "multipleOf": 15, "maximum": 480, "minimum": 15}, "attendees": {"type": "array", "items": {"type": "string"}, "maxItems": 50}},
        "sql": {"table": {"enum": ["users", "orders", "items"]}, "columns": {"type": "array", "items": {"enum": ["id", "name", "price", "created"]}, "uniqueItems": True, "minItems": 1}, "where": {"type": "string"}},
        "edit": {"path": {"type": "string", "pattern": "^[\\w./-]+$"}, "line": {"type": "integer", "minimum": 1}, "text": {"type": "string"}},
    }  # fmt: skip
    for (name, properties), strict, all_required in itertools.product(parameters.items(), (True, False), (True, False)):
        yield (
            f"function-{name}-{strict}-{all_required}",
            {
                "type": "object",
                "properties": properties,
                "required": list(properties) if all_required else list(properties)[:1],
                **({"additionalProperties": False} if strict else {}),
            },
        )


def records() -> Iterator[tuple[str, Json]]:
    position = {"type": "array", "minItems": 2, "items": {"type": "number"}}
    kinds = {
        "Point": position,
        "LineString": {"type": "array", "minItems": 2, "items": position},
        "Polygon": {"type": "array", "items": {"type": "array", "minItems": 4, "items": position}},
    }
    geometries = [
        {"type": "object", "required": ["type", "coordinates"], "properties": {"type": {"type": "string", "enum": [name]}, "coordinates": shape, "bbox": {"type": "array", "minItems": 4, "items": {"type": "number"}}}}
        for name, shape in kinds.items()
    ]  # fmt: skip
    for geometry, name in zip(geometries, kinds, strict=True):
        yield f"geojson-{name}", geometry
    yield "geojson-feature", {"$schema": DRAFT_7, "type": "object", "required": ["type", "properties", "geometry"], "properties": {"type": {"enum": ["Feature"]}, "id": {"oneOf": [{"type": "number"}, {"type": "string"}]}, "properties": {"oneOf": [{"type": "null"}, {"type": "object"}]}, "geometry": {"oneOf": [{"type": "null"}, *geometries]}}}  # fmt: skip
    for count in (2, 5, 12, 30):
        yield f"wide-{count}", {"type": "object", "properties": {f"field_{i}": {"type": ["string", "integer", "boolean", "number"][i % 4]} for i in range(count)}, "required": [f"field_{i}" for i in range(0, count, 2)]}  # fmt: skip
        yield f"enum-{count}", {"type": "object", "properties": {"code": {"enum": [f"CODE_{i:03}" for i in range(count * 10)]}}, "required": ["code"]}  # fmt: skip
    for depth in (2, 5, 10):
        schema: Json = {"type": "string"}
        for level in range(depth):
            schema = {"type": "object", "properties": {f"level_{level}": schema}, "required": [f"level_{level}"]}
        yield f"deep-{depth}", schema
    yield "resume", {"$schema": DRAFT_7, "type": "object", "definitions": {"iso8601": {"type": "string", "pattern": "^([1-2][0-9]{3}-[0-1][0-9]-[0-3][0-9]|[1-2][0-9]{3}-[0-1][0-9]|[1-2][0-9]{3})$"}}, "properties": {"basics": {"type": "object", "properties": {"name": {"type": "string"}, "email": {"type": "string", "format": "email"}, "profiles": {"type": "array", "items": {"type": "object", "properties": {"network": {"type": "string"}, "url": {"type": "string", "format": "uri"}}}}}}, "work": {"type": "array", "items": {"type": "object", "additionalProperties": True, "properties": {"name": {"type": "string"}, "startDate": {"$ref": "#/definitions/iso8601"}, "endDate": {"$ref": "#/definitions/iso8601"}, "highlights": {"type": "array", "additionalItems": False, "items": {"type": "string"}}}}}}, "additionalProperties": True}  # fmt: skip
    yield "sbom", {"$schema": DRAFT_7, "type": "object", "required": ["bomFormat", "specVersion", "version"], "additionalProperties": False, "properties": {"bomFormat": {"enum": ["CycloneDX"]}, "specVersion": {"type": "string"}, "serialNumber": {"type": "string", "pattern": "^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"}, "version": {"type": "integer", "minimum": 1, "default": 1}, "components": {"type": "array", "uniqueItems": True, "items": {"type": "object", "required": ["type", "name"], "properties": {"type": {"enum": ["application", "library"]}, "name": {"type": "string"}, "hashes": {"type": "array", "items": {"type": "object", "required": ["alg", "content"], "properties": {"alg": {"enum": ["MD5", "SHA-256"]}, "content": {"type": "string", "pattern": "^([a-fA-F0-9]{32}|[a-fA-F0-9]{64})$"}}}}}}}}}  # fmt: skip
    for currency in ("EUR", "USD"):
        yield f"invoice-{currency}", {"type": "object", "properties": {"number": {"type": "string", "pattern": "^INV-\\d{6}$"}, "date": {"type": "string", "format": "date"}, "currency": {"const": currency}, "lines": {"type": "array", "minItems": 1, "maxItems": 20, "items": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 120}, "quantity": {"type": "integer", "minimum": 1}, "price": {"type": "number", "minimum": 0}, "vat": {"enum": [0, 7, 19]}}, "required": ["text", "quantity", "price", "vat"], "additionalProperties": False}}}, "required": ["number", "date", "currency", "lines"], "additionalProperties": False}  # fmt: skip


def extraction() -> Iterator[tuple[str, Json]]:
    """What is asked of models: labels, entities, reasoning in steps, user interfaces."""
    labels = ["positive", "neutral", "negative"]
    yield "steps", {"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "object", "properties": {"explanation": {"type": "string"}, "output": {"type": "string"}}, "required": ["explanation", "output"], "additionalProperties": False}}, "final_answer": {"type": "string"}}, "required": ["steps", "final_answer"], "additionalProperties": False}  # fmt: skip
    yield "ui", {"type": "object", "properties": {"type": {"type": "string", "enum": ["div", "button", "header"]}, "label": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#"}}, "attributes": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}, "value": {"type": "string"}}, "required": ["name", "value"], "additionalProperties": False}}}, "required": ["type", "label", "children", "attributes"], "additionalProperties": False}  # fmt: skip
    for count, scored in itertools.product((1, 3), (True, False)):
        score = {"score": {"type": "number", "minimum": 0, "maximum": 1}} if scored else {}
        yield f"labels-{count}-{scored}", {"type": "object", "properties": {"label": {"enum": labels[: count + 1]}, **score, "evidence": {"type": "array", "items": {"type": "string", "minLength": 3}, "maxItems": count}}, "required": ["label", "evidence", *score]}  # fmt: skip
    for kind in (["person", "place"], ["gene", "drug", "disease"]):
        yield f"entities-{kind[0]}", {"type": "array", "items": {"type": "object", "properties": {"text": {"type": "string"}, "kind": {"enum": kind}, "start": {"type": "integer", "minimum": 0}, "end": {"type": "integer", "minimum": 0}}, "required": ["text", "kind"], "additionalProperties": False}}  # fmt: skip
    for levels in range(2, 8):
        yield f"rating-{levels}", {"type": "object", "properties": {name: {"type": "integer", "minimum": 1, "maximum": levels} for name in ("clarity", "truth", "style")}, "required": ["clarity", "truth", "style"]}  # fmt: skip
    for names in (["yes", "no"], ["a", "b", "c", "d"]):
        yield f"choice-{len(names)}", {"type": "object", "properties": {"reason": {"type": "string", "maxLength": 500}, "answer": {"type": "string", "enum": names}}, "required": ["reason", "answer"], "additionalProperties": False}  # fmt: skip


def infrastructure() -> Iterator[tuple[str, Json]]:
    name = {"type": "string", "maxLength": 63, "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"}
    metadata = {"type": "object", "required": ["name"], "properties": {"name": name, "namespace": name, "labels": {"type": ["object", "null"], "additionalProperties": {"type": ["string", "null"]}}, "annotations": STRING_MAP}}  # fmt: skip
    quantity = {"oneOf": [{"type": "string", "pattern": "^\\d+(m|Mi|Gi)?$"}, {"type": "number"}]}
    port = {"type": "object", "required": ["containerPort"], "properties": {"containerPort": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535}, "protocol": {"enum": ["TCP", "UDP"], "type": "string"}}}  # fmt: skip
    container = {"type": "object", "required": ["name", "image"], "properties": {"name": name, "image": {"type": "string"}, "args": {"type": ["array", "null"], "items": {"type": ["string", "null"]}}, "ports": {"type": "array", "items": port, "x-kubernetes-list-type": "map"}, "resources": {"type": "object", "properties": {"limits": {"type": "object", "additionalProperties": quantity}}}, "env": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "pattern": "^[A-Z_][A-Z0-9_]*$"}, "value": {"type": "string"}}}}}}  # fmt: skip
    for kind in ("Pod", "Deployment", "StatefulSet", "Job"):
        spec: Json = {"type": "object", "required": ["containers"], "properties": {"containers": {"type": "array", "minItems": 1, "items": container}, "restartPolicy": {"enum": ["Always", "OnFailure", "Never"]}}}  # fmt: skip
        if kind != "Pod":
            spec = {"type": "object", "required": ["template"], "properties": {"replicas": {"type": "integer", "minimum": 0}, "template": {"type": "object", "properties": {"metadata": metadata, "spec": spec}}}}  # fmt: skip
        yield f"k8s-{kind}", {"type": "object", "required": ["apiVersion", "kind", "metadata", "spec"], "properties": {"apiVersion": {"enum": ["v1", "apps/v1", "batch/v1"]}, "kind": {"enum": [kind]}, "metadata": metadata, "spec": spec}, "x-kubernetes-group-version-kind": [{"kind": kind}]}  # fmt: skip
    for style in ("list", "dict", "either"):
        env = {"list": {"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "dict": {"type": "object", "patternProperties": {".+": {"type": ["string", "number", "boolean", "null"]}}, "additionalProperties": False}}  # fmt: skip
        environment = {"oneOf": list(env.values())} if style == "either" else env[style]
        yield f"compose-{style}", {"$schema": DRAFT_7, "type": "object", "properties": {"services": {"type": "object", "patternProperties": {"^[a-zA-Z0-9._-]+$": {"type": "object", "properties": {"image": {"type": "string"}, "build": {"oneOf": [{"type": "string"}, {"type": "object", "properties": {"context": {"type": "string"}}, "additionalProperties": False, "patternProperties": {"^x-": {}}}]}, "ports": {"type": "array", "items": {"anyOf": [{"type": "number", "format": "ports"}, {"type": "string", "format": "ports"}]}, "uniqueItems": True}, "environment": environment, "restart": {"enum": ["no", "always"]}, "deploy": {"type": ["object", "null"]}}, "patternProperties": {"^x-": {}}, "additionalProperties": False}}, "additionalProperties": False}, "volumes": {"type": "object", "additionalProperties": {"type": ["object", "null"]}}}, "required": ["services"], "patternProperties": {"^x-": {}}, "additionalProperties": False}  # fmt: skip
    for count in range(1, 6):
        yield f"firewall-{count}", {"type": "array", "minItems": count, "items": {"type": "object", "properties": {"cidr": {"type": "string", "pattern": "^(\\d{1,3}\\.){3}\\d{1,3}/([0-9]|[12][0-9]|3[0-2])$"}, "port": {"oneOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"const": "any"}]}, "action": {"enum": ["allow", "deny"]}}, "required": ["cidr", "action"], "additionalProperties": False}}  # fmt: skip
    for backend in ("s3", "gcs", "local"):
        yield f"backend-{backend}", {"type": "object", "properties": {"type": {"enum": ["s3", "gcs", "local"]}, "bucket": {"type": "string", "minLength": 3, "maxLength": 63}, "path": {"type": "string"}, "region": {"type": "string"}}, "required": ["type"], "allOf": [{"if": {"properties": {"type": {"const": "s3"}}}, "then": {"required": ["bucket", "region"]}}, {"if": {"properties": {"type": {"const": "gcs"}}}, "then": {"required": ["bucket"]}}, {"if": {"properties": {"type": {"const": "local"}}}, "then": {"required": ["path"]}}], "additionalProperties": False, "default": {"type": backend}}  # fmt: skip
