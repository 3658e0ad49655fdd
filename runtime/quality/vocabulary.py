"""Whether two models read the same tokens: only then can their predictions be compared."""

from pathlib import Path

from tokenizers import Tokenizer as Vocabulary

from ...manifests.errors import CorruptInputError, UsageError
from ...manifests.files import read_small
from ..source import Source
from ..tokenizer import FILE, MAX_TOKENIZER_BYTES


def require_same_model(reference: Source, other: Source) -> None:
    """Raise UsageError, naming what differs, unless both are of one geometry and vocabulary."""
    for name in reference.model.__struct_fields__:
        wanted, found = getattr(reference.model, name), getattr(other.model, name)
        if wanted != found:
            both = f"{found!r:.60} in {other.where}, but {wanted!r:.60} in {reference.where}"
            raise UsageError(f"they are not the same model: {name} is {both}")
    require_same_vocabulary(Path(reference.where), Path(other.where))


def require_same_vocabulary(reference: Path, other: Path) -> None:
    """Compare the tokenizer.json of two folders: their bytes, and where those differ, each token's number.

    Raises UsageError if the tokens differ or one folder has no such file.
    """
    wanted, found = _content(reference), _content(other)
    if wanted != found and _numbers(wanted, reference) != _numbers(found, other):
        raise UsageError(f"{other} and {reference} have different tokenizers; a pack is scored against its own model")


def _content(folder: Path) -> bytes:
    if not (folder / FILE).exists():
        raise UsageError(f"{folder} has no {FILE}, so its tokens cannot be told to be the other's; put it there")
    return read_small(folder / FILE, MAX_TOKENIZER_BYTES)


def _numbers(content: bytes, folder: Path) -> dict[str, int]:
    try:
        numbers: dict[str, int] = Vocabulary.from_buffer(content).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises bare Exceptions for some faults
        raise CorruptInputError(f"{folder / FILE} is not a tokenizer: {error}") from error
    return numbers
