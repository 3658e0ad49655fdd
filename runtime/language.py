"""What a pack says about text: its tokenizer, its chat template, how its authors sample from it."""

from dataclasses import dataclass

from ..layout.reader import Pack
from .packfiles import PackFiles
from .sampling import Sampling, unsupported
from .template import ChatTemplate
from .tokenizer import Tokenizer

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class Language:
    """The text side of a pack. `unsupported` names sampling settings its authors ask for and this engine lacks."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    sampling: Sampling
    unsupported: tuple[str, ...]

    @classmethod
    def of(cls, pack: Pack) -> "Language":
        """Read and check the text files of an opened pack. Raises as `Tokenizer.open` and `ChatTemplate.open` do."""
        files = PackFiles.of(pack)
        tokenizer = Tokenizer.open(files, pack.model.vocab_size)
        template = ChatTemplate.open(files, tokenizer.named_tokens)
        config = files.json(GENERATION_CONFIG)
        sampling = Sampling.from_config(config, str(pack.path / GENERATION_CONFIG))
        return cls(tokenizer, template, sampling, tuple(unsupported(config)))
