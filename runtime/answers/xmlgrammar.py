"""Arguments written as <parameter=KEY> tags, as rules of a grammar; read again by `xmlcall`, they fit the schema.

Strings stand as bare text, of which enum, const, pattern and length are held to, format is not; all else as JSON.
Keywords that these tags cannot be held to are refused by name.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from ...manifests.errors import UsageError
from .dialect import PARAMETER, PARAMETER_END
from .parameters import schema_types, target

END = f"\n{PARAMETER_END}\n"
NOTES = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "$comment", "$schema", "$id"}
    | {"$defs", "definitions"}
)
OBJECT = NOTES | {"type", "properties", "required", "additionalProperties", "strict"}
TEXT = NOTES | {"type", "enum", "const", "pattern", "minLength", "maxLength", "format", "anyOf", "$ref"}
OPTIONAL_TEXTS: tuple[Any, ...] = (
    {"type": ["string", "null"]},
    {"type": ["null", "string"]},
    {"anyOf": [{"type": "string"}, {"type": "null"}]},
    {"anyOf": [{"type": "null"}, {"type": "string"}]},
)
SPACING = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}
MAX_REFERENCES = 32


def xml_arguments(tool: str, parameters: Any, prefix: str, *, strict: bool) -> tuple[list[str], list[str]]:
    """What follows <function=...> in a tool's rule, and the rules that it names, whose names begin with `prefix`.

    Raises UsageError, naming the keyword, for a schema whose arguments cannot be written so.
    """
    try:
        return _arguments(tool, parameters, prefix, strict=strict)
    except UsageError as error:
        raise UsageError(f"the parameters of the tool {tool!r:.60} cannot be held to: {error}") from error


def _arguments(tool: str, parameters: Any, prefix: str, *, strict: bool) -> tuple[list[str], list[str]]:
    _require_name(tool)
    root = parameters
    schema = _followed(parameters, root)
    if strict and (unknown := sorted(schema.keys() - OBJECT)):
        raise UsageError(f"{unknown[0]} beside its properties")
    properties = schema.get("properties", {})
    required = schema.get("required", ())
    if missing := [key for key in required if key not in properties]:
        raise UsageError(f"required names {missing[0]!r:.60}, which is none of its properties")
    close = f"~/(?s:.*){PARAMETER_END.replace('/', chr(92) + '/')}(?s:.*)/"
    named, rules = [], [f"{prefix.upper()}OPEN: /(?s:.*)/ & {close}"]
    for number, (key, each) in enumerate(properties.items()):
        _require_name(key)
        name = f"{prefix}{number}"
        named.append(name if strict and key in required else f"{name}?")
        value, more = _value(
            each if strict else _loose(each, root), root, f"{prefix}{number}_", f"{prefix.upper()}OPEN"
        )
        rules += [f"{name}: {_literal(f'{PARAMETER}{key}>' + chr(10))} ({value})", *more]
    return named, rules


def _loose(schema: Any, root: Any) -> dict[str, Any]:
    """Any value of the types that a schema may allow."""
    types = schema_types(schema, root)
    return {"type": "string"} if types <= {"string"} else {"type": sorted(types)}


def _value(schema: Any, root: Any, prefix: str, text: str) -> tuple[str, list[str]]:
    """What follows a parameter's tag, to its end, and the rules that it names."""
    bare = {key: each for key, each in schema.items() if key not in NOTES} if isinstance(schema, dict) else schema
    if schema_types(schema, root) == {"string"}:
        return _text(schema, root, prefix, text)
    if bare in OPTIONAL_TEXTS:
        return _text({"type": "string"}, root, prefix, text)
    given = {"$defs": {}, "definitions": {}, **(root if isinstance(root, dict) else {})}
    whole = {**({} if schema is True else schema), "$defs": given["$defs"], "definitions": given["definitions"]}
    return f"{prefix}json {_literal(END)}", [f"{prefix}json: %json {json.dumps({**whole, 'x-guidance': SPACING})}"]


def _text(schema: Any, root: Any, prefix: str, text: str, left: int = MAX_REFERENCES) -> tuple[str, list[str]]:
    """A string without quotes."""
    if unknown := sorted(schema.keys() - TEXT):
        raise UsageError(f"{unknown[0]} of a string")
    if not left:
        raise UsageError("$ref that leads round in a circle")
    restricted = sorted(schema.keys() - NOTES - {"type"})
    for keyword in ("$ref", "anyOf"):
        if keyword in schema:
            if restricted != [keyword]:
                raise UsageError(f"{keyword} beside {' and '.join(each for each in restricted if each != keyword)}")
            ways = [target(schema["$ref"], root)] if keyword == "$ref" else schema["anyOf"]
            found = [_text(way, root, f"{prefix}{i}_", text, left - 1) for i, way in enumerate(ways)]
            return " | ".join(value for value, _ in found), [rule for _, rules in found for rule in rules]
    if "const" in schema or "enum" in schema:
        return _one_of(schema, prefix, restricted)
    terms = [text, *_length(schema), *([f"/{_pattern(schema['pattern'])}/"] if "pattern" in schema else ())]
    inner, whole = f"{prefix.upper()}INNER", f"{prefix.upper()}VALUE"
    return whole, [f"{inner}: {' & '.join(terms)}", f"{whole}: {inner} {_literal(END)}"]


def _one_of(schema: Mapping[str, Any], prefix: str, restricted: list[str]) -> tuple[str, list[str]]:
    if len(restricted) > 1:
        raise UsageError(f"{restricted[0]} beside {restricted[1]}")
    texts = [schema["const"]] if "const" in schema else schema["enum"]
    if not texts or any(PARAMETER_END in text for text in texts):
        raise UsageError("an enum of nothing, or with a tag in it")
    ways = " | ".join(_literal(text + END) for text in texts)
    return f"{prefix}one", [f"{prefix}one: {ways}"]


def _length(schema: Mapping[str, Any]) -> list[str]:
    least, most = schema.get("minLength", 0), schema.get("maxLength", "")
    return [f"/(?s:.{{{least},{most}}})/"] if least or most != "" else []


def _pattern(pattern: str) -> str:
    """JSON Schema's patterns may be found anywhere in a text unless they are anchored."""
    from llguidance import regex_to_lark

    begins, ends = pattern.startswith("^"), bool(re.search(r"(?<!\\)(\\\\)*\$$", pattern))
    inner = pattern[begins : len(pattern) - ends]
    if (begins or ends) and _alternates(inner):
        raise UsageError(f"the pattern {pattern!r:.60}, whose alternatives have anchors; put them in brackets")
    return f"{'' if begins else '(?s:.*)'}({regex_to_lark(inner, 'dw')}){'' if ends else '(?s:.*)'}"


def _alternates(pattern: str) -> bool:
    """Whether there is a bar outside of all brackets."""
    depth, plain = 0, re.sub(r"\[\^?\]?(\\.|[^\]\\])*\]", "", re.sub(r"\\.", "", pattern))
    for character in plain:
        depth += (character == "(") - (character == ")")
        if character == "|" and not depth:
            return True
    return False


def _followed(schema: Any, root: Any) -> dict[str, Any]:
    """A schema, or what it refers to."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict):
            break
        if schema.keys() - NOTES != {"$ref"}:
            return schema
        schema = target(schema["$ref"], root)
    raise UsageError("no object, or a $ref that leads nowhere")


def _require_name(name: str) -> None:
    if not name.strip() or name != name.strip() or set(name) & set("<>\n"):
        raise UsageError(f"the name {name!r:.60} cannot stand in a tag")


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
