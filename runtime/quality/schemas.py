"""JSON schemas of tools' parameters: which can be checked against, and what they allow.

A schema is sound if every reference in it leads to a schema within it, and none leads round in a circle without going
into the value. `require_sound` finds out before anything is measured; `allows` is for sound schemas.
"""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ...manifests.errors import UsageError

REFERENCES = ("$ref", "$dynamicRef")
# Keywords whose schemas are for the very value that theirs is for: of one, of a list, of a mapping.
ONE, LISTED, NAMED = ("not", "if", "then", "else"), ("allOf", "anyOf", "oneOf"), ("dependentSchemas",)


def require_sound(schema: Any) -> None:
    """Raise UsageError unless this is a sound JSON schema, saying why not."""
    try:
        _require_schema(schema)
        parts = _parts(schema)
        TopologicalSorter({key: map(id, same) for key, (_, same) in parts.items()}).prepare()
    except RecursionError as error:
        raise UsageError("it is nested too deeply to be checked") from error
    except CycleError as error:
        circle = (parts[key][0] for key in error.args[1])
        reference = next(reference for part in circle for reference in _references(part))
        raise UsageError(f"its reference {reference!r:.60} leads back to itself without end") from error


def allows(schema: Any, value: Any) -> bool:
    """Whether a sound schema allows a value, and never one too deep or too large to be computed with.

    Raises UsageError for a schema that is not sound.
    """
    library, referencing = libraries()
    try:
        return bool(library.Draft202012Validator(schema, registry=referencing.Registry()).is_valid(value))
    except (RecursionError, ArithmeticError):
        return False
    except Exception as error:  # the library has one for each fault of a reference, and lets others through
        raise UsageError(f"arguments cannot be checked against their schema: {error}") from error


# Each part of a schema that is an object, by its id: the part, and those that are for the same value as it.
_Parts = dict[int, tuple[dict[str, Any], list[dict[str, Any]]]]


def _parts(schema: Any) -> _Parts:
    """Everything that is reached from a schema. Raises UsageError for a reference that leads to no schema in it."""
    _, referencing = libraries()
    draft = referencing.jsonschema.DRAFT202012
    found: _Parts = {}
    waiting = [(schema, referencing.Registry().resolver_with_root(draft.create_resource(schema)))]
    while waiting:
        part, resolver = waiting.pop()
        if isinstance(part, dict) and id(part) not in found:
            targets = [_target(reference, resolver) for reference in _references(part)]
            same = [*_for_the_same_value(part), *(target.contents for target in targets)]
            found[id(part)] = part, [each for each in same if isinstance(each, dict)]
            below = ((each, draft.create_resource(each)) for each in draft.subresources_of(part))
            waiting += [(each, resolver.in_subresource(resource)) for each, resource in below]
            waiting += [(target.contents, target.resolver) for target in targets]
    return found


def _references(part: dict[str, Any]) -> Iterator[str]:
    yield from (part[keyword] for keyword in REFERENCES if keyword in part)


def _for_the_same_value(part: dict[str, Any]) -> Iterator[Any]:
    yield from (part[keyword] for keyword in ONE if keyword in part)
    for keyword in LISTED:
        yield from part.get(keyword, ())
    for keyword in NAMED:
        yield from part.get(keyword, {}).values()


def _target(reference: str, resolver: Any) -> Any:
    """Where a reference leads, which must be a schema too."""
    try:
        target = resolver.lookup(reference)
    except Exception as error:  # the library has some of its own, and lets others through
        remedy = 'put what it names under "$defs" of the same schema, as "#/$defs/name"'
        raise UsageError(f"its reference {reference!r:.60} leads nowhere in it; {remedy}") from error
    _require_schema(target.contents)
    return target


def _require_schema(schema: Any) -> None:
    library, _ = libraries()
    try:
        library.Draft202012Validator.check_schema(schema)
    except library.SchemaError as error:
        raise UsageError(f"{error.message:.100}") from error


def libraries() -> tuple[Any, Any]:
    """What checks schemas, jsonschema, and what resolves references, referencing. Raises UsageError without them."""
    try:
        import jsonschema
        import referencing.jsonschema
    except ImportError as error:
        raise UsageError("scoring tool calls needs jsonschema; install it with `pip install '.[quality]'`") from error
    return jsonschema, referencing
