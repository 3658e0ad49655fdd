"""The names of a pack's files, and which names a manifest may use at all."""

import re

MANIFEST_FILE = "manifest.json"
DIGESTS_FILE = "digests.bin"
TRUNK_FILE = "trunk.safetensors"
SUMS_FILE = "SHA256SUMS"
EXPERTS_FOLDER = "experts"
OWN_FILES = (MANIFEST_FILE, DIGESTS_FILE, TRUNK_FILE, SUMS_FILE, EXPERTS_FOLDER)

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def layer_file(index: int) -> str:
    """The name of layer `index`'s file, relative to the pack."""
    return f"{EXPERTS_FOLDER}/layer_{index:02d}.bin"


def is_safe(name: str) -> bool:
    """Whether `name` is an ordinary file name in the pack's own directory on every system we know."""
    return bool(_SAFE.fullmatch(name)) and not name.endswith(".") and not _DEVICE.fullmatch(name)
