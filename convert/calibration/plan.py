"""What a calibration will take, before it starts: tokens, bytes on disk, bytes of memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from ...layout.tensorheader import DTYPE_BITS
from ...manifests import canonical
from ...manifests.errors import UsageError
from ...quantize.moments import choose_device
from ..checkpoint import Checkpoint
from ..plan import understand
from ..tensors import Source
from .collector import sum_bytes
from .header import Facts, Model, Text
from .identity import model_digest, tokenizer_digest
from .measuring import FLOAT_BYTES, Measuring
from .sections import EXPERT_HESSIANS, choose

LEAST_WINDOWS = 16
BLOCK_ROWS = 4096  # rows of activations computed together
READ_AHEAD = 4  # experts in memory
BASE_BYTES = 250_000_000  # the program, its libraries, the tokenizer, the text


@dataclass(frozen=True)
class CalibrationPlan:
    """A calibration to be made: of what, where its sums are gathered, and which tokens are in which window.

    `starts` are the windows' first tokens and the number of all tokens. `spill_bytes` is the largest array over all
    tokens that is kept in memory, `measured_tokens` how many sensitivities are measured on; 0 if they are not.
    """

    facts: Facts
    source: Source
    starts: Sequence[int]
    device: str
    spill_bytes: int
    measured_tokens: int = 0

    @property
    def identity(self) -> bytes:
        """What decides the statistics; a calibration goes on only under the same identity."""
        return canonical.encode({"packer": version("moepack"), "facts": self.facts, "device": self.device})

    @cached_property
    def held_out(self) -> NDArray[np.bool_]:
        """Of each token, whether its window is one of those that only judge."""
        return held_out_tokens(self.starts, self.facts.text.held_out)

    @property
    def state_bytes(self) -> int:
        """Bytes of the hidden states of all tokens."""
        return self.facts.text.tokens * self.facts.model.hidden_size * FLOAT_BYTES

    @property
    def disk_bytes(self) -> int:
        """Most bytes on the disk: those of the passage, or of measuring sensitivities when it has ended.

        Of the passage: hidden states of two layers, what memory may not hold, all of the file twice.
        """
        passing = 2 * self.state_bytes + self.spilled_bytes + 2 * self.facts.shape.total_bytes
        measuring = self.spilled_bytes // 2 + self.facts.shape.total_bytes + self._measuring.disk_bytes
        return max(passing, measuring)

    @property
    def spilled_bytes(self) -> int:
        """Bytes of the two arrays over all tokens, if they do not stay in memory."""
        return 2 * self.state_bytes if self.state_bytes > self.spill_bytes else 0

    @property
    def memory_bytes(self) -> int:
        """Most bytes of memory, about."""
        resident = 2 * self.state_bytes if not self.spilled_bytes else 0
        routes = 2 * 8 * self.facts.model.experts_per_token * self.facts.text.tokens
        passing, measuring = resident + routes, resident // 2 + self._measuring.memory_bytes
        return BASE_BYTES + max(passing, measuring) + self._blocks + self._weights + self._sums

    @property
    def _measuring(self) -> Measuring:
        return Measuring(self.source.model, self.measured_tokens, self.spill_bytes)

    @property
    def _sums(self) -> int:
        """The sums, their last copy, and the layer's section before and after it is compressed."""
        shape = self.facts.shape
        return sum_bytes(shape) + shape.hidden_size**2 * 8 + 3 * shape.total_bytes // shape.layers

    @property
    def _blocks(self) -> int:
        model = self.facts.model
        return BLOCK_ROWS * FLOAT_BYTES * (8 * model.hidden_size + 6 * model.moe_intermediate_size)

    @property
    def _weights(self) -> int:
        """The experts that are read ahead, as floats at worst, and twice the largest part of the trunk."""
        model = self.facts.model
        expert = 3 * model.hidden_size * model.moe_intermediate_size * FLOAT_BYTES
        return READ_AHEAD * expert + 2 * largest_part(self.source)


@dataclass(frozen=True)
class Options:
    """What was asked for. Every `held_out`-th window only judges; `hessian_bytes` is the bound of "auto"."""

    window: int
    held_out: int = 8
    expert_hessians: str = "auto"
    hessian_bytes: int = 8 * 10**9
    device: str = "auto"
    spill_bytes: int = 2 * 10**9

    def __post_init__(self) -> None:
        if self.held_out < 2:
            raise UsageError(
                f"--held-out {self.held_out} is out of range: every so many-th window is held out, from 2 (half of"
                " them) up to the number of windows"
            )
        if self.expert_hessians not in ("auto", *EXPERT_HESSIANS):
            choices = ", ".join(("auto", *EXPERT_HESSIANS))
            raise UsageError(f"{self.expert_hessians!r} is no choice of experts' Hessians; there are {choices}")


def plan_calibration(
    checkpoint: Checkpoint,
    starts: Sequence[int],
    whole: int,
    text_digest: str,
    options: Options,
    *,
    through: str | None,
    measured_tokens: int = 0,
) -> CalibrationPlan:
    """Plan to calibrate on windows that begin at `starts`, of a text with `text_digest` that gives `whole` of them.

    `through` is the digest of the pack whose experts the text goes through, if any, `measured_tokens` how many tokens
    sensitivities are measured on. Raises UsageError if the text is too short or too few of its tokens are used, the
    checkpoint has no tokenizer or there is no such device, and as `understand` does.
    """
    source = understand(checkpoint)
    model = source.model
    held_out = held_out_tokens(starts, options.held_out)
    text = Text(
        digest=text_digest,
        window=options.window,
        windows=require_windows(starts, whole, options),
        held_out=options.held_out,
        tokens=len(held_out),
        held_out_tokens=int(np.count_nonzero(held_out)),
    )
    described = Model(
        digest=model_digest(checkpoint, model),
        tokenizer_digest=tokenizer_digest(checkpoint),
        layers=model.num_layers,
        experts=model.num_experts,
        experts_per_token=model.num_experts_per_tok,
        hidden_size=model.hidden_size,
        moe_intermediate_size=model.moe_intermediate_size,
    )
    kept = choose(model, options.expert_hessians, options.hessian_bytes)
    facts = Facts(described, text, through, kept)
    return CalibrationPlan(facts, source, starts, _device(options.device), options.spill_bytes, measured_tokens)


def _device(wanted: str) -> str:
    try:
        return choose_device(wanted)
    except ValueError as error:
        raise UsageError(str(error)) from None


def held_out_tokens(starts: Sequence[int], every: int) -> NDArray[np.bool_]:
    """Of each token, whether it is in one of the windows number `every`, 2 * `every`, ..."""
    lengths = np.diff(starts)
    windows = (np.arange(len(lengths)) + 1) % every == 0
    return np.repeat(windows, lengths)


def require_windows(starts: Sequence[int], whole: int, options: Options) -> int:
    """How many windows there are, of `whole` in the text.

    Raises UsageError, saying whose fault it is, if they are too few to fit to some and judge by others.
    """
    windows, least = len(starts) - 1, max(LEAST_WINDOWS, options.held_out)
    if whole < least:
        raise UsageError(
            f"the text is too short: it gives {whole} windows of up to {options.window} tokens, and at least {least}"
            " are needed; give a longer one, or a smaller --window"
        )
    if windows < least:
        raise UsageError(
            f"--tokens is too small: it takes {windows} of the text's {whole} windows of up to {options.window} tokens,"
            f" and at least {least} are needed; give --tokens {least * options.window} or more, or a smaller --window"
        )
    return windows


def largest_part(source: Source) -> int:
    """Bytes of a layer's trunk tensors, or of the largest one outside of the layers, whatever is more."""
    sizes: dict[str, int] = {}
    for entry in source.trunk:
        tensor = entry.tensor
        owner = ".".join(tensor.name.split(".")[:3]) if ".layers." in tensor.name else tensor.name
        sizes[owner] = sizes.get(owner, 0) + int(np.prod(tensor.shape)) * DTYPE_BITS["F32"] // 8
    return max(sizes.values())
