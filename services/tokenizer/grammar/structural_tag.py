"""Structural tags: text with parts that are held to something, as xgrammar describes them. What is inside a tag is
enforced as it would be alone.

https://xgrammar.mlc.ai/docs/tutorials/structural_tag.html, and the older form {"structures": [{"begin", "schema",
"end"}], "triggers": [...]}. A grammar in a tag may be one of Sapwood's own, as JSON.
"""

from typing import Any

from services.tokenizer.grammar import ebnf
from services.tokenizer.grammar.composed import composed
from services.tokenizer.grammar.errors import Unenforceable
from services.tokenizer.grammar.regex import parse_whole
from services.tokenizer.grammar.rules import Rules, text_expression
from services.tokenizer.grammar.schema.document import Json, escaped
from services.tokenizer.grammar.schema.emit import emit

JSON_STYLE = "json"


def prepared(tag: Json, max_characters: int) -> Json:
    """The tag with our own grammars for its schemas and expressions. Raises Unenforceable."""
    if not isinstance(tag, dict):
        raise Unenforceable("must be an object")
    if "structures" in tag:
        tag = _from_structures(tag)
    if not isinstance(tag.get("format"), dict):
        raise Unenforceable("must have a 'format' that is an object")
    return {"type": "structural_tag", "format": _format(tag["format"], "/format", max_characters)}


def _from_structures(tag: dict[str, Any]) -> Json:
    structures, triggers = tag["structures"], tag.get("triggers")
    if not isinstance(structures, list) or not isinstance(triggers, list):
        raise Unenforceable("must have lists of 'structures' and 'triggers'")
    tags = []
    for place, one in enumerate(structures):
        if not isinstance(one, dict) or not isinstance(one.get("begin"), str) or not isinstance(one.get("end"), str):
            raise Unenforceable("must have a 'begin' and an 'end'", pointer=f"/structures/{place}")
        content = {"type": "json_schema", "json_schema": one.get("schema", True)}
        tags.append({"type": "tag", "begin": one["begin"], "content": content, "end": one["end"]})
    return {"format": {"type": "triggered_tags", "triggers": triggers, "tags": tags}}


def _format(value: Json, pointer: str, max_characters: int) -> Json:
    if isinstance(value, list):
        return [_format(one, f"{pointer}/{place}", max_characters) for place, one in enumerate(value)]
    if not isinstance(value, dict):
        return value
    match value.get("type"):
        case "json_schema" if value.get("style", JSON_STYLE) == JSON_STYLE:
            return _schema(value, pointer, max_characters)
        case "json_schema":
            raise Unenforceable(
                f"has a schema in a style that is not supported, {str(value['style'])[:50]!r}", pointer=pointer
            )
        case "qwen_xml_parameter":  # an older name of a schema's style
            raise Unenforceable("has a schema in a style that is not supported, 'qwen_xml'", pointer=pointer)
        case "regex":
            return _regex(value, pointer)
        case "grammar" if isinstance(value.get("grammar"), dict):
            return _composed(value["grammar"], pointer, max_characters)
        case "grammar":
            return _ebnf(value, pointer)
        case "const_string":
            return value
    return {key: _format(inner, f"{pointer}/{escaped(key)}", max_characters) for key, inner in value.items()}


def _schema(value: dict[str, Any], pointer: str, max_characters: int) -> Json:
    left = sorted(value.keys() - {"type", "json_schema", "style", "max_whitespace_cnt", "any_order"})
    if left and value[left[0]]:
        raise Unenforceable(f"has a schema with {left[0]!r}, which is not supported", pointer=pointer)
    rules = Rules()
    try:
        root = emit(value.get("json_schema"), rules, max_characters)
    except Unenforceable as error:
        inner = f"{pointer}/json_schema{error.pointer or ''}"
        raise Unenforceable(error.message, pointer=inner, keyword=error.keyword) from None
    return {"type": "grammar", "grammar": rules.text(root)}


def _composed(value: dict[str, Any], pointer: str, max_characters: int) -> Json:
    rules = Rules()
    try:
        root = composed(value, rules, max_characters)
    except Unenforceable as error:
        inner = f"{pointer}/grammar{error.pointer or ''}"
        raise Unenforceable(error.message, pointer=inner, keyword=error.keyword) from None
    return {"type": "grammar", "grammar": rules.text(root)}


def _ebnf(value: dict[str, Any], pointer: str) -> Json:
    if not isinstance(value.get("grammar"), str):
        raise Unenforceable("must have a 'grammar' that is a string or an object", pointer=pointer)
    try:
        ebnf.checked(value["grammar"])
    except Unenforceable as error:
        raise Unenforceable(error.message, pointer=f"{pointer}/grammar") from None
    return value


def _regex(value: dict[str, Any], pointer: str) -> Json:
    if not isinstance(value.get("pattern"), str):
        raise Unenforceable("must have a 'pattern' that is a string", pointer=pointer)
    rules = Rules()
    try:
        root = text_expression(parse_whole(value["pattern"]), rules, is_json=False)
    except Unenforceable as error:
        raise Unenforceable(error.message, pointer=pointer) from None
    return {"type": "grammar", "grammar": rules.text(root)}
