"""Saved conversations: a JSON file to read, and beside it, in a file of its own, the state that computing it left.

The state is tied to the pack, to how it is computed and, by its digest, to the JSON; without it, or on another pack,
the conversation is computed again. Promises that whatever is loaded was checked first, and that a refusal changes
nothing. Both files are the user's alone (mode 0600).
"""

import re
import secrets
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from ...layout import atomic
from ...manifests import canonical
from ...manifests.errors import CorruptInputError, StorageError, UsageError
from ...manifests.files import read_small
from ..prompt import MAX_MESSAGES_BYTES
from ..sampling import Sampling
from ..template import check_variables
from .conversation import Conversation, Entry, check_tools
from .partner import Settings
from .recall import Recall

VERSION: Literal[1] = 1
_TAG = re.compile(r"[0-9a-f]{16}")


class SavedState(Struct, forbid_unknown_fields=True):
    """The state's file, by what its name has between the JSON's and `.state`, and what it must be."""

    tag: str
    blake3: str
    identity: str

    def __post_init__(self) -> None:
        if not _TAG.fullmatch(self.tag):
            raise ValueError("the tag of its state is not sixteen hexadecimal digits")


class SavedSampling(Struct, forbid_unknown_fields=True):
    """See sampling.Sampling."""

    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None


class Saved(Struct, forbid_unknown_fields=True):
    """The JSON file; `pack` is the digest of the pack that answered."""

    moepack_chat: Literal[1]
    pack: str
    messages: list[Entry]
    tools: list[dict[str, Any]] | None
    template_vars: dict[str, Any]
    sampling: SavedSampling
    max_tokens: int
    stop: list[str]
    state: SavedState | None

    def check(self) -> None:
        """Raise UsageError for what the types do not say."""
        check_variables(self.template_vars)
        check_tools(self.tools or (), "tools")
        _ = self.settings

    @property
    def conversation(self) -> Conversation:
        """What was said."""
        return Conversation(list(self.messages), self.tools, self.template_vars)

    @property
    def settings(self) -> Settings:
        """How answers were made. Raises UsageError for settings out of range."""
        return Settings(Sampling(**msgspec.to_builtins(self.sampling)), self.max_tokens, tuple(self.stop))


def save(path: Path, conversation: Conversation, settings: Settings, recall: Recall, pack: str, identity: bytes) -> int:
    """Write both files, over earlier ones of ours only; the bytes of the state's, 0 if there is none.

    The JSON comes last, and until then names the earlier state. Raises UsageError if something else has the name,
    StorageError if the disk is full or fails.
    """
    _check_ours(path)
    tag = secrets.token_hex(8)
    file = _state_file(path, tag)
    digest = recall.save(file)
    state = None if digest is None else SavedState(tag, digest, identity.hex())
    content = _content(conversation, settings, pack, state)
    try:
        atomic.replace(path, content, atomic.PRIVATE)
    except BaseException:
        atomic.remove(file)
        raise
    with suppress(OSError):  # what is left then, nothing names
        _remove_others(path, file)
    return file.stat().st_size if state else 0


def read(path: Path) -> Saved:
    """The JSON file. Raises CorruptInputError for one that is not as `save` writes it, StorageError if it cannot be."""
    value = canonical.decode(read_small(path, MAX_MESSAGES_BYTES, follow_links=True), str(path), canonical.OWN)
    try:
        saved = msgspec.convert(value, Saved)
        saved.check()
        return saved
    except (msgspec.ValidationError, UsageError) as error:
        raise CorruptInputError(f"{path} is no conversation that chat saved: {error!s:.300}") from error


def restore(path: Path, saved: Saved, recall: Recall, identity: bytes) -> int:
    """Bring `recall` to the saved state, if there is one for this pack; how many tokens need not be computed.

    Raises what Recall.load does for a state that is not what was saved.
    """
    if saved.state is None or saved.state.identity != identity.hex():
        return 0
    file = _state_file(path, saved.state.tag)
    return recall.load(file, saved.state.blake3) if file.exists() else 0


def _content(conversation: Conversation, settings: Settings, pack: str, state: SavedState | None) -> bytes:
    saved = Saved(
        VERSION,
        pack,
        conversation.entries,
        conversation.tools,
        conversation.variables,
        SavedSampling(**asdict(settings.sampling)),
        settings.max_tokens,
        list(settings.stops),
        state,
    )
    return msgspec.json.format(msgspec.json.encode(saved), indent=2) + b"\n"


def _check_ours(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is no directory; name a file in one")
    if path.exists():
        try:
            read(path)
        except (CorruptInputError, StorageError) as error:
            raise UsageError(f"{path} is there and is no saved conversation; give another name") from error


def _state_file(path: Path, tag: str) -> Path:
    return path.with_name(f"{path.name}.{tag}.state")


def _remove_others(path: Path, keep: Path) -> None:
    """States of earlier saves under this name, which no JSON names any more."""
    for other in path.parent.iterdir():
        tag = other.name.removeprefix(f"{path.name}.").removesuffix(".state")
        if other != keep and _TAG.fullmatch(tag) and other.name == _state_file(path, tag).name:
            atomic.remove(other)
