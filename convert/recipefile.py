"""Recipe files: a recipe as JSON or TOML, to be written by hand, or printed by moe-pack, edited and given back.

    {"format": "book2-g8", "method": "mse", "trunk": "source",
     "overrides": [{"layers": "0-2,6", "projections": ["down"], "format": "affine3-g64", "method": "mse"}]}

Every key but `format` may be left out. An override without `layers` or `projections` is for all of them; without
`format` or `method` it keeps the recipe's own. Of two overrides for one matrix the later counts.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from ..layout.record import PROJECTIONS
from ..manifests import canonical
from ..manifests.errors import CorruptInputError, UsageError
from .recipe import DEFAULT_METHOD, Coding, Override, Recipe, checked_projection, checked_trunk_format

MAX_BYTES = 128 * 1024
MAX_NAMED = 2**17  # layers, in all overrides together
MAX_DOTS = 64  # in a line of TOML, whose reader takes the square of the parts of a key
ALL = "all"
_RUNS = re.compile(r"\d{1,4}(-\d{1,4})?(, ?\d{1,4}(-\d{1,4})?)*")


class _Override(Struct, frozen=True, forbid_unknown_fields=True):
    layers: str = ALL
    projections: Annotated[tuple[str, ...], Meta(min_length=1)] = PROJECTIONS
    format: str | None = None
    method: str | None = None


class _Recipe(Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    method: str = DEFAULT_METHOD
    trunk: str = "source"
    overrides: list[_Override] = []


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file; one whose name ends in .toml is TOML, any other JSON.

    Raises UsageError naming the file if it cannot be read, is malformed, or names what does not exist.
    """
    return recipe_in(decoded(path), path)


def recipe_in(document: Any, path: Path) -> Recipe:
    """The recipe in a document that was found in the file `path`. Raises like `read_recipe`."""
    try:
        return _recipe(msgspec.convert(document, _Recipe))
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not a recipe: {error}") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def decoded(path: Path) -> Any:
    """What a small file says: TOML if its name ends in .toml, JSON otherwise. Raises UsageError naming it."""
    content = _content(path)
    try:
        return _decoded(content, path)
    except (CorruptInputError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def written(recipe: Recipe) -> dict[str, Any]:
    """The document of a recipe, ready for JSON; `read_recipe` gives the same recipe again."""
    return {
        "format": recipe.coding.format.name,
        "method": recipe.coding.method,
        "trunk": recipe.trunk_format,
        "overrides": [_written_override(override) for override in recipe.overrides],
    }


def runs(layers: tuple[int, ...]) -> str:
    """Layers in few words: 0-9,12."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and parts[-1][1] == layer - 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def _written_override(override: Override) -> dict[str, Any]:
    return {
        "layers": ALL if override.layers is None else runs(override.layers),
        "projections": list(override.projections),
        "format": override.coding.format.name,
        "method": override.coding.method,
    }


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise UsageError(f"{path} has more than {MAX_BYTES} bytes; it cannot be a recipe")
    return content


def _decoded(content: bytes, path: Path) -> Any:
    if path.suffix == ".toml":
        if any(line.count(b".") > MAX_DOTS for line in content.splitlines()):
            raise UsageError(f"{path} has a line with more than {MAX_DOTS} dots; it cannot be a recipe")
        try:
            return tomllib.loads(content.decode("utf-8"))
        except RecursionError:
            raise UsageError(f"{path} is nested too deeply; it cannot be a recipe") from None
    return canonical.decode(content, str(path))


def _recipe(written: _Recipe) -> Recipe:
    coding = Coding.parse(written.format, written.method)
    overrides, named = [], 0
    for override in written.overrides:
        overrides.append(_override(override, written))
        named += len(overrides[-1].layers or ())
        if named > MAX_NAMED:
            raise UsageError(f"its overrides name more than {MAX_NAMED} layers in all")
    return Recipe(coding, checked_trunk_format(written.trunk), tuple(overrides))


def _override(override: _Override, recipe: _Recipe) -> Override:
    coding = Coding.parse(override.format or recipe.format, override.method or recipe.method)
    wanted = [checked_projection(name) for name in override.projections]
    names = tuple(name for name in PROJECTIONS if name in wanted)
    return Override(None if override.layers == ALL else _layers(override.layers), names, coding)


def _layers(text: str) -> tuple[int, ...]:
    """The layers of a text such as "0-9,12"."""
    if not _RUNS.fullmatch(text):
        raise UsageError(f"{text!r} names no layers; write them as 0-9,12, or {ALL}")
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            raise UsageError(f"{text!r} names no layers: {part.strip()} ends before it begins")
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))
