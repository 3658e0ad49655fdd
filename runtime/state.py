"""What a session remembers between tokens: recurrent states, and key/value caches for the whole context.

Caches are reserved at once and never moved: a position costs memory when it is first written, and no copy ever exists.
"""

import numpy as np

from ..manifests import schema
from .backends.base import AttentionState, Backend, DeltaState, Floats, Tensor

FLOAT_BYTES = 4


class State:
    """One sequence's state, at `position` tokens. Layers are advanced by the model, position by the session."""

    def __init__(self, model: schema.Model, backend: Backend, context: int) -> None:
        self.position = 0
        self.marked: dict[int, list[tuple[Floats, Floats]]] = {}  # the linear layers' states inside the last pass
        self.layers = [layer_state(model, backend, layer, context) for layer in range(model.num_layers)]


def layer_state(model: schema.Model, backend: Backend, layer: int, context: int) -> AttentionState | DeltaState:
    """The empty state of one layer of one sequence of at most `context` tokens."""
    if model.layer_types[layer] == "full_attention":
        return _attention_state(model, backend, context)
    return _delta_state(model, backend)


def _attention_state(model: schema.Model, backend: Backend, context: int) -> AttentionState:
    width = model.full_attention.num_kv_heads * model.full_attention.head_dim
    return AttentionState(backend.reserved(context, width), backend.reserved(context, width))


def _delta_state(model: schema.Model, backend: Backend) -> DeltaState:
    shape = model.linear_attention
    conv = backend.state(shape.conv_kernel - 1, delta_channels(shape))
    return DeltaState(conv, backend.state(shape.num_value_heads, shape.key_head_dim, shape.value_head_dim))


def copied(tensor: Tensor, backend: Backend) -> Floats:
    """A tensor's values, in memory of their own."""
    return np.array(backend.to_host(tensor), np.float32)


def delta_channels(shape: schema.LinearAttention) -> int:
    """Channels of the convolution: queries, keys and values of all heads."""
    return 2 * shape.num_key_heads * shape.key_head_dim + shape.num_value_heads * shape.value_head_dim


def position_bytes(model: schema.Model) -> int:
    """Bytes that one more position costs in all key/value caches together."""
    shape = model.full_attention
    return 2 * FLOAT_BYTES * shape.num_kv_heads * shape.head_dim * model.layer_types.count("full_attention")


def recurrent_bytes(model: schema.Model) -> int:
    """Bytes of all convolution and recurrent states together, whatever the length of the sequence."""
    shape = model.linear_attention
    conv = (shape.conv_kernel - 1) * delta_channels(shape)
    memory = shape.num_value_heads * shape.key_head_dim * shape.value_head_dim
    return FLOAT_BYTES * (conv + memory) * model.layer_types.count("linear_attention")
