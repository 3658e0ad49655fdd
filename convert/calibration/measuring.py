"""What measuring sensitivities takes beside a calibration: hidden states of every variant, and blocks of logits.

The measurement belongs to runtime, which this room does not know; a test holds these sizes to what it takes.
"""

from dataclasses import dataclass

from ...layout.record import PROJECTIONS
from ...manifests.schema import Model

FLOAT_BYTES = 4
LOGITS_BYTES = 64 * 1024 * 1024  # of a block of logits, float64
LOGITS_HELD = 6  # such blocks while two models' are compared


@dataclass(frozen=True)
class Measuring:
    """Sensitivities measured on `tokens` tokens, 0 if they are not; arrays larger than `spill_bytes` go to disk."""

    model: Model
    tokens: int
    spill_bytes: int

    @property
    def disk_bytes(self) -> int:
        """Most bytes on the disk."""
        return sum(size for size in self._arrays if size > self.spill_bytes)

    @property
    def memory_bytes(self) -> int:
        """Most bytes of memory, about."""
        resident = [size if size <= self.spill_bytes else 0 for size in self._arrays]
        *kept, gained = resident
        return sum(kept) + max(gained + self._routes, self._logits)

    @property
    def _arrays(self) -> tuple[int, int, int]:
        """The unchanged stream, all variants, and what all variants gain in a layer."""
        stream = self.tokens * self.model.hidden_size * FLOAT_BYTES
        return stream, self._variants * stream, self._variants * stream

    @property
    def _variants(self) -> int:
        return len(PROJECTIONS) * self.model.num_layers

    @property
    def _routes(self) -> int:
        return 2 * 8 * self.model.num_experts_per_tok * self._variants * self.tokens

    @property
    def _logits(self) -> int:
        return LOGITS_HELD * min(LOGITS_BYTES, self.tokens * self.model.vocab_size * 8)
