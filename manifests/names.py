"""The names of a pack's files, and which names a manifest may use at all."""

import re

MANIFEST_FILE = "manifest.json"
DIGESTS_FILE = "digests.bin"
TRUNK_FILE = "trunk.safetensors"
SUMS_FILE = "SHA256SUMS"
EXPERTS_FOLDER = "experts"
OWN_FILES = (MANIFEST_FILE, DIGESTS_FILE, TRUNK_FILE, SUMS_FILE, EXPERTS_FOLDER)

# In words that JSON Schema's regular expressions have too, since published schemas repeat them.
_DEVICE = "(?:[cC][oO][nN]|[pP][rR][nN]|[aA][uU][xX]|[nN][uU][lL]|[cC][oO][mM][0-9]|[lL][pP][tT][0-9])"
SAFE = rf"(?!{_DEVICE}(?:\.|$))[A-Za-z0-9_](?:[A-Za-z0-9._-]{{0,62}}[A-Za-z0-9_-])?"
LAYER = rf"{EXPERTS_FOLDER}/layer_(?:[0-9]{{2}}|[1-9][0-9]{{2}}|[1-3][0-9]{{3}}|40[0-8][0-9]|409[0-5])\.bin"
_SAFE = re.compile(SAFE)


def whole(pattern: str) -> str:
    """A regular expression for JSON Schema and msgspec, which search: `pattern` and nothing before or after it."""
    return rf"^(?:{pattern})$(?!\n)"  # Python's $ would let a line end follow


def layer_file(index: int) -> str:
    """The name of layer `index`'s file, relative to the pack."""
    return f"{EXPERTS_FOLDER}/layer_{index:02d}.bin"


def is_safe(name: str) -> bool:
    """Whether `name` is an ordinary file name in the pack's own directory on every system we know."""
    return _SAFE.fullmatch(name) is not None
