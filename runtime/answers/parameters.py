"""What a parameter written as bare text means, by the tool's JSON schema.

A schema that allows only strings makes it text. Else it is the JSON value it spells, if the schema may allow one of
that type; True, False and None, which some templates print, are taken for JSON's. Anything else is text again: a client
then gets a value of a wrong type, which it can tell its model, rather than none. What no schema knows is text.
(mlx-lm's and vLLM's parsers of Qwen3-Coder go by the schema too, and fall back to text.)
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .jsontext import is_unicode, loads

TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
PYTHON = {"True": "true", "False": "false", "None": "null"}
MAX_REFERENCES = 32


def functions(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The tools' functions, wrapped as OpenAI writes them ({"type": "function", "function": ...}) or bare."""
    return [tool["function"] if isinstance(tool.get("function"), dict) else tool for tool in tools]


def parameters_of(name: str, tools: Sequence[Mapping[str, Any]]) -> Any:
    """The schema of a tool's arguments; that of no parameters if there is no such tool."""
    return next((each.get("parameters", {}) for each in functions(tools) if each.get("name") == name), {})


def types_of(key: str, parameters: Any) -> frozenset[str]:
    """The JSON types that a tool's schema may allow its parameter `key`."""
    properties = _object(parameters).get("properties")
    if key not in _object(properties):
        return frozenset({"string"})
    return schema_types(_object(properties)[key], parameters)


def schema_types(schema: Any, root: Any, left: int = MAX_REFERENCES) -> frozenset[str]:
    """The JSON types that a schema within `root` may allow: no fewer than it does."""
    if not isinstance(schema, dict) or not left:
        return TYPES
    found = TYPES
    if (named := schema.get("type")) is not None:
        found &= frozenset([named] if isinstance(named, str) else filter(TYPES.__contains__, _list(named)))
    for values in (schema.get("enum"), [schema["const"]] if "const" in schema else None):
        if values is not None:
            found &= frozenset(map(type_of, _list(values))) | _whole(values)
    for alternatives in (schema.get("anyOf"), schema.get("oneOf")):
        if alternatives is not None:
            found &= frozenset().union(*(schema_types(each, root, left - 1) for each in _list(alternatives)))
    for each in _list(schema.get("allOf")):
        found &= schema_types(each, root, left - 1)
    if isinstance(reference := schema.get("$ref"), str):
        found &= schema_types(target(reference, root), root, left - 1)
    return found


def _whole(values: Any) -> frozenset[str]:
    return frozenset({"number", "integer"} if any(type_of(each) == "number" for each in _list(values)) else ())


def type_of(value: Any) -> str:
    """The JSON type of a value; "number" also for whole ones."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    for type_, name in (((int, float), "number"), (str, "string"), (dict, "object")):
        if isinstance(value, type_):
            return name
    return "array"


def argument(text: str, types: frozenset[str]) -> str:
    """The JSON of a parameter's bare text, for a schema that may allow `types`."""
    spelled = PYTHON.get(text.strip(), text.strip())
    try:
        value = loads(spelled)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    fits = type_of(value) in types or (type_of(value) == "number" and "integer" in types)
    return spelled if fits and is_unicode(value) else json.dumps(text, ensure_ascii=False)


def target(reference: str, root: Any) -> Any:
    """What a local reference leads to; None if nothing."""
    found = root
    for step in reference.split("/")[1:] if reference.startswith("#") else ("?",):
        found = _object(found).get(step.replace("~1", "/").replace("~0", "~"))
    return found


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
