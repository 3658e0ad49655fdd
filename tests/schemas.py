"""The schemas in docs/schemas of reports that are structs; `python tests/schemas.py` writes them anew.

The others' stand there as they were written by hand.
"""

import json
from pathlib import Path
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from moepack.convert.repair import Mended
from moepack.convert.reproduce import Reproduction
from moepack.convert.signing import Signed
from moepack.layout.comparing import Located
from moepack.manifests.report import Report

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
    pack_digest: str
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


if __name__ == "__main__":
    for name, content in generated().items():
        (FOLDER / f"{name}.json").write_text(content)
