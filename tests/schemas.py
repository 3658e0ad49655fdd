"""The schemas in docs/schemas of reports that are structs; `python tests/schemas.py` writes them anew.

The others' stand there as they were written by hand, but for what a name may be, which is put into them from the
constants that our parsers go by.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from moepack.convert import hub
from moepack.convert.repair import Mended
from moepack.convert.reproduce import Reproduction
from moepack.convert.signing import Signed
from moepack.layout.comparing import Located
from moepack.manifests import names
from moepack.manifests.report import Report
from moepack.manifests.schema import Digest

NAME = {"maxLength": 256}  # as FORMAT.md bounds names that it says no more of
REPOSITORY = {"pattern": names.whole(hub.REPOSITORY)}
RECIPE = dict.fromkeys(("format", "expert_format", "method", "trunk", "trunk_format"), NAME)
READ = {"family": NAME, "repository": NAME, "revision": NAME, **RECIPE}  # in a pack, which anybody may have made
MADE = {**READ, "repository": REPOSITORY}
NAMES: dict[str, dict[str, dict[str, Any]]] = {  # by schema: what the property of a name is; "a.b" is b in a
    "inspect": READ,
    "quality": READ,
    "plan": MADE,
    "lock": MADE,
    "recipe": RECIPE,
    "provenance": {
        **READ,
        "subject.name": {"pattern": names.whole(f"{names.SAFE}|{names.LAYER}")},
        "resolvedDependencies.name": {"maxLength": 255},
    },
}
FOLDER = Path(__file__).parents[1] / "docs/schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Verified(Report, frozen=True):
    """moe-pack verify --json and moe-pack scrub --json; `signed` only where a signature was asked for."""

    pack: str = ""
    signed: Signed | UnsetType = UNSET


class Differing(Located, frozen=True):
    """moe-pack diff --json."""

    a: str = ""
    b: str = ""


class Reproduced(Reproduction, frozen=True):
    """moe-pack reproduce --json; `from` is the checkpoint."""

    pack: str = ""
    source_: str = msgspec.field(default="", name="from")


class Repaired(Struct, frozen=True):
    """moe-pack repair --json."""

    pack: str
    pack_digest: Digest
    mended: list[Mended]
    stray: list[str]


class Vouched(Signed, frozen=True):
    """moe-pack sign --json."""


STRUCTS = {"verify": Verified, "diff": Differing, "reproduce": Reproduced, "repair": Repaired, "sign": Vouched}


def generated() -> dict[str, str]:
    """The files' contents by name: every field is always there, unless it may be unset, and there are no others."""
    return {name: _schema(struct) for name, struct in STRUCTS.items()}


def _schema(struct: type[Struct]) -> str:
    (root,), known = msgspec.json.schema_components([struct], ref_template="#/$defs/{name}")
    objects = {name: _strict(each) for name, each in known.items()}
    own = objects.pop(root["$ref"].rpartition("/")[2])
    document = {"$schema": DIALECT, **own, "title": (struct.__doc__ or "").strip(), "$defs": objects}
    document.pop("description", None)
    return json.dumps(document, indent=2) + "\n"


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    optional = {"signed"}
    for each in schema["properties"].values():
        each.pop("default", None)
    required = [name for name in schema["properties"] if name not in optional]
    return {**schema, "required": required, "additionalProperties": False}


def bounded() -> dict[str, str]:
    """The contents of the files that were written by hand, with names as they may be."""
    found = {name: json.loads((FOLDER / f"{name}.json").read_bytes()) for name in NAMES}
    for name, schema in found.items():
        _bound(schema, NAMES[name])
    return {name: json.dumps(schema, indent=2) + "\n" for name, schema in found.items()}


def _bound(schema: Any, known: dict[str, dict[str, Any]], inside: str = "") -> None:
    for name, each in schema.get("properties", {}).items():
        if (found := known.get(f"{inside}.{name}", known.get(name))) and "string" in each.get("type", ""):
            each.update(found)
        _bound(each, known, name)
    if "items" in schema:
        _bound(schema["items"], known, inside)


if __name__ == "__main__":
    for name, content in (generated() | bounded()).items():
        (FOLDER / f"{name}.json").write_text(content)
