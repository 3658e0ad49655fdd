"""The families this version packs, and the choice among them by what config.json says.

To add a family: write its file here and name it in `FAMILIES`.
"""

from collections.abc import Mapping
from typing import Any

from ...manifests.errors import UnsupportedError
from .family import Family
from .qwen3_5_moe import QWEN3_5_MOE
from .settings import Settings

FAMILIES = (QWEN3_5_MOE,)


def find_family(config: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises UnsupportedError, naming what is supported, for any other.

    Raises CorruptInputError if `architectures` is no list of names.
    """
    model_type, architectures = config.get("model_type"), _architectures(config)
    for family in FAMILIES:
        if model_type in family.model_types and _claims(family, architectures):
            return family
    supported = "; ".join(f"{family.name} ({', '.join(family.architectures)})" for family in FAMILIES)
    described = f"{', '.join(architectures) or 'a model'} of type {model_type!r}"
    raise UnsupportedError(f"config.json describes {described}; this version packs {supported}")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    return [] if config.get("architectures") is None else Settings(config).names("architectures")


def _claims(family: Family, architectures: list[str]) -> bool:
    return not architectures or any(name in family.architectures for name in architectures)
