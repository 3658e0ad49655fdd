"""How much memory the Metal backend needs for a model: what it takes at once, and a bound of what it lends.

Counts what backend.py and the model hold at the same time; a test holds the bound against the workspace's peak.
"""

from dataclasses import dataclass

from ....manifests import schema
from ...model import SPAN
from ...operations import HEAD_ROWS
from ...state import FLOAT_BYTES, delta_channels

MOST_SPLITS = 16  # of one token's attention
BY_VALUE = 1024  # numbers that Metal takes with a launch, without a buffer: tokens of an expert at a time
GAPS = 8  # one part in so many may lie between regions that are lent


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


def kept_bytes(model: schema.Model, extent: Extent) -> int:
    """What it keeps besides a session's state: the table of rotations, and the router's choices."""
    turns = extent.context * (model.full_attention.rotary_dims // 2) * 2
    return FLOAT_BYTES * (turns + 3 * extent.chunk * extent.experts_per_token)


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
