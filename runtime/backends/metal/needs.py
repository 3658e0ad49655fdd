"""How much memory the Metal backend needs for a model: what it keeps, and a bound of what it lends at once.

Counts what backend.py and the model hold at the same time; a test holds the bound against the workspace's peak.
"""

from dataclasses import dataclass

from ....layout.reader import Pack
from ....manifests import schema
from ... import memory
from ...model import SPAN
from ...operations import HEAD_ROWS
from ...state import FLOAT_BYTES, delta_channels
from ...streaming.slots import slot_pitch
from ...trunk import small_weights, trunk_bytes
from .device import Device
from .launches import ARENAS
from .memory import page_limit, shelf_bytes

MOST_SPLITS = 16  # of one token's attention
LAG = 1  # experts of a chunk that are computed while the host goes on to the next
BY_VALUE = 1024  # numbers that Metal takes with a launch, without a buffer: tokens of an expert at a time
GAPS = 8  # one part in so many may lie between regions that are lent
PROCESS_BYTES = 100_000_000  # of PyObjC, Metal and its pipelines, an allowance: it was never measured on a Mac


@dataclass(frozen=True)
class Extent:
    """The longest sequence, the most tokens computed together, and K."""

    context: int
    chunk: int
    experts_per_token: int


def activation_bytes(model: schema.Model, extent: Extent) -> int:
    """The workspace: the most that is lent at once, gaps included."""
    most = max(_mixing(model, extent), _experts(model, extent), _head(model, extent))
    return FLOAT_BYTES * (most + most // GAPS) + 1024 * 1024


@dataclass(frozen=True)
class DeviceNeeds:
    """What the Metal backend needs on a device; see memory.Needs."""

    pack: Pack
    device: Device
    experts_per_token: int

    @property
    def process(self) -> tuple[int, int]:
        """Besides what any process needs, an allowance for Metal."""
        running, starting = memory.process_bytes(self.pack)
        return running + PROCESS_BYTES, starting + PROCESS_BYTES

    @property
    def trunk(self) -> int:
        """In pieces that fit the device's buffers, and small weights on their shelf."""
        small = small_weights(self.pack)
        return trunk_bytes(self.pack, page_limit(self.device)) - sum(small) + shelf_bytes(small)

    def state(self, context: int) -> int:
        """A session's, and the table of rotations."""
        rotated = self.pack.model.full_attention.rotary_dims // 2 * 2
        return memory.state_bytes(self.pack.model, context) + FLOAT_BYTES * context * rotated

    def scratch(self, chunk: int) -> int:
        """The workspace, the router's choices on both sides, and what sampling takes."""
        model, k = self.pack.model, self.experts_per_token
        choices = FLOAT_BYTES * chunk * k * (3 + memory.ROUTE_FLOATS)
        sampling = FLOAT_BYTES * memory.SAMPLING_COPIES * model.vocab_size
        return activation_bytes(model, Extent(1, chunk, k)) + choices + sampling

    @property
    def slots(self) -> range:
        """All of one token's experts of a layer are computed at once, from a few buffers."""
        in_a_buffer = page_limit(self.device) // slot_pitch(self.pack)
        return range(max(self.experts_per_token, LAG + 1), ARENAS * in_a_buffer + 1)

    @property
    def most(self) -> int | None:
        """What the device advises."""
        return self.device.working_set


def _mixing(model: schema.Model, extent: Extent) -> int:
    """Floats: the residual stream and the norm that experts saw before; of a span its norm and its mixer's tensors."""
    spanned = min(SPAN, extent.chunk)
    mixer = max(_attention(model.full_attention, spanned), _delta(model.linear_attention, spanned))
    return model.hidden_size * (2 * extent.chunk + spanned) + mixer


def _attention(shape: schema.FullAttention, tokens: int) -> int:
    """Projections, queries, and partial results: of a chunk one for each row, of one token so many."""
    heads, dim = shape.num_heads, shape.head_dim
    projected = tokens * (2 * heads + 2 * shape.num_kv_heads) * dim
    return projected + tokens * heads * dim + max(tokens, MOST_SPLITS) * heads * (dim + 2)


def _delta(shape: schema.LinearAttention, tokens: int) -> int:
    """Projections, what was convolved, and the output."""
    width = shape.num_value_heads * shape.value_head_dim
    return tokens * (2 * delta_channels(shape) + 2 * width + 2 * shape.num_value_heads)


def _experts(model: schema.Model, extent: Extent) -> int:
    """The stream, its norm, the sum, and the widest of router, shared expert, one routed and one token's routed."""
    hidden, inner, tokens, k = model.hidden_size, model.moe_intermediate_size, extent.chunk, extent.experts_per_token
    shared = tokens * (2 * model.shared_expert_intermediate_size + hidden + 1)
    widest = max(tokens * model.num_experts, shared, 2 * min(tokens, BY_VALUE) * inner)
    one = model.num_experts + 2 * model.shared_expert_intermediate_size + hidden + 1 + k * (inner + hidden)
    return 3 * tokens * hidden + max(widest, one)


def _head(model: schema.Model, extent: Extent) -> int:
    """The stream and its last norm, and of some rows the head's norm and their logits."""
    rows = min(HEAD_ROWS, extent.chunk)
    return 2 * extent.chunk * model.hidden_size + rows * (model.hidden_size + model.vocab_size)
