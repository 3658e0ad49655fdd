"""What a pack says about text: its tokenizer, its chat template, how its authors sample from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..layout.reader import Pack
from ..manifests.errors import CorruptInputError
from .answers.dialect import MARKUP
from .packfiles import PackFiles
from .sampling import Sampling, unsupported
from .template import ChatTemplate
from .tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Language:
    """The text side of a pack.

    `max_tokens`: the longest answer its authors ask for, None when they do not say. `unsupported` names sampling
    settings they ask for and this engine lacks.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    sampling: Sampling
    max_tokens: int | None
    unsupported: tuple[str, ...]

    @property
    def special_markup(self) -> bool:
        """Whether an answer's markup is among its special tokens, which are then part of an answer's text."""
        return not MARKUP.isdisjoint(self.tokenizer.special.values())

    @classmethod
    def of(cls, pack: Pack) -> "Language":
        """Read and check the text files of an opened pack. Raises as `Tokenizer.open` and `ChatTemplate.open` do."""
        files = PackFiles.of(pack)
        tokenizer = Tokenizer.open(files, pack.model.vocab_size)
        template = ChatTemplate.open(files, tokenizer.named_tokens)
        config = files.json(GENERATION_CONFIG)
        name = str(pack.path / GENERATION_CONFIG)
        sampling, longest = Sampling.from_config(config, name), max_new_tokens(config, name)
        return cls(tokenizer, template, sampling, longest, tuple(unsupported(config)))


def max_new_tokens(config: Mapping[str, Any], name: str) -> int | None:
    """The longest answer in a generation_config.json called `name`; CorruptInputError for what is no such number."""
    value = config.get("max_new_tokens")
    if value is not None and (type(value) is not int or value < 1):
        raise CorruptInputError(f"{name}: max_new_tokens is {value!r}, not a whole number from 1 up")
    return value
