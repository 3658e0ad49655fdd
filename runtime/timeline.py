"""What a decoded token does on a GPU, part by part: a prediction from counted bytes and a device's published figures.

Counts what each part of a layer moves and computes; it takes as long as the slower of the two, at full bandwidth or at
the peak. Launches, kernels that fall short, contention and heat are left out, and activations stay in caches: all but
the round trip to the host are lower bounds. Of floating-point operations, those of products, attention, convolution
and delta rule are counted; unpacking codes is integer work. Nothing here was ever compared with a device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from ..layout.reader import Pack
from ..layout.record import RecordLayout
from ..manifests import schema
from .devices import Device
from .forecast import GB
from .state import FLOAT_BYTES, delta_channels, position_bytes, recurrent_bytes

Name: TypeAlias = Literal[
    "embedding", "delta", "attention", "router", "host", "reads", "shared", "experts", "combine", "head"
]
NAMES: tuple[Name, ...] = get_args(Name)  # in the order of a token

POSITION = 2048  # of the token that is predicted, unless the context is shorter
ROUND_TRIP_SECONDS = 200e-6  # from the router's signal to the GPU's going on, reads apart
ROUND_TRIP_SOURCE = (
    "the least that tinygrad#8927 has for launching a kernel and waiting for it, 200 to 370 µs; of shared events, which"
    " we use, nobody's figure was found"
)
MIXERS: Mapping[schema.LayerType, tuple[Name, str]] = {
    "linear_attention": ("delta", "linear_attn."),
    "full_attention": ("attention", "self_attn."),
}
DELTA_OPERATIONS = 7  # per cell of the state: decay, k^T S, k (outer) c and its sum, q^T S


@dataclass(frozen=True)
class Work:
    """What a part moves between memory and GPU, in bytes, and computes, in floating-point operations."""

    bytes: float
    operations: float


@dataclass(frozen=True)
class Sizes:
    """All that is counted of a pack: its geometry, each layer's record layout, bytes of each trunk tensor by name."""

    model: schema.Model
    records: Sequence[RecordLayout]
    trunk: Mapping[str, int]

    @classmethod
    def of(cls, pack: Pack) -> "Sizes":
        """An opened pack's."""
        return cls(pack.model, pack.records, {entry.name: entry.size for entry in pack.trunk.entries.values()})

    def stored(self, *prefixes: str) -> int:
        """Bytes of the trunk tensors whose names begin so."""
        return sum(size for name, size in self.trunk.items() if name.startswith(prefixes))


@dataclass(frozen=True)
class Part:
    """One part of all the layers that have it, `times` in number: bytes, operations and seconds of all together.

    Bytes are moved in memory, those of "reads" from the disk. "host" is the round trip, which moves nothing.
    """

    name: Name
    times: int
    bytes: float
    operations: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """One token at `position`, `hit_rate` of its wanted experts in memory. `seconds` is less than the sum of its parts:

    while the GPU waits for the host and for reads, it computes the shared expert; `hidden_seconds` are saved by that.
    """

    assumption: str
    hit_rate: float
    experts_per_token: int
    position: int
    parts: tuple[Part, ...]
    hidden_seconds: float
    layer_seconds: float
    seconds: float
    tokens_per_second: float


def predict(
    sizes: Sizes, device: Device, experts_per_token: int, hit_rate: float, assumption: str, position: int = POSITION
) -> Timeline:
    """A token on a device. `hit_rate` is of every layer's wanted experts; the rest is read."""
    layers = [
        _layer_parts(sizes, index, device, experts_per_token, hit_rate, position)
        for index in range(sizes.model.num_layers)
    ]
    once = _on_gpu(once_work(sizes), device)
    hidden = sum(map(_hidden, layers))
    in_layers = sum(part.seconds for layer in layers for part in layer) - hidden
    seconds = in_layers + sum(part.seconds for part in once)
    return Timeline(
        assumption=assumption,
        hit_rate=hit_rate,
        experts_per_token=experts_per_token,
        position=position,
        parts=_together([*once, *(part for layer in layers for part in layer)]),
        hidden_seconds=hidden,
        layer_seconds=in_layers / len(layers),
        seconds=seconds,
        tokens_per_second=1 / seconds,
    )


def layer_work(sizes: Sizes, layer: int, experts_per_token: int, position: int) -> list[tuple[Name, Work]]:
    """The parts of one layer that run on the GPU, in their order."""
    model, prefix, record = sizes.model, f"model.layers.{layer}.", sizes.records[layer]
    hidden, k, shared = model.hidden_size, experts_per_token, model.shared_expert_intermediate_size
    name, mixer = MIXERS[model.layer_types[layer]]
    weights = sizes.stored(f"{prefix}input_layernorm.", prefix + mixer)
    state, products = _delta(model) if name == "delta" else _attention(model, position)
    router = sizes.stored(f"{prefix}post_attention_layernorm.", f"{prefix}mlp.gate.")
    rows = k + 3  # one of each expert and of the shared one, the residual stream read and written
    return [
        (name, Work(weights + state, products)),
        ("router", Work(router, 2 * model.num_experts * hidden)),
        ("shared", Work(sizes.stored(f"{prefix}mlp.shared_expert"), 2 * hidden * (3 * shared + 1))),
        ("experts", Work(k * record.size, 2 * 3 * k * hidden * model.moe_intermediate_size)),
        ("combine", Work(rows * FLOAT_BYTES * hidden, 2 * (k + 1) * hidden)),
    ]


def once_work(sizes: Sizes) -> list[tuple[Name, Work]]:
    """What is done once for a token: one row of the table of embeddings, and the head, which may be that table."""
    model, table = sizes.model, sizes.stored("model.embed_tokens.")
    head = table if model.tie_word_embeddings else sizes.stored("lm_head.")
    return [
        ("embedding", Work(table / model.vocab_size, 0)),
        ("head", Work(sizes.stored("model.norm.") + head, 2 * model.vocab_size * model.hidden_size)),
    ]


def _attention(model: schema.Model, position: int) -> tuple[float, float]:
    """Bytes of keys and values, all read and one written; operations of the projections and of all positions."""
    shape, seen = model.full_attention, position + 1
    width, kv_width = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    per_position = position_bytes(model) / model.layer_types.count("full_attention")
    weights = model.hidden_size * (2 * width + 2 * kv_width + width)
    return (seen + 1) * per_position, 2 * weights + 2 * 2 * width * seen


def _delta(model: schema.Model) -> tuple[float, float]:
    """Bytes of the states, read and written; operations of the projections, the convolution and the delta rule."""
    shape, channels = model.linear_attention, delta_channels(model.linear_attention)
    heads, width = shape.num_value_heads, shape.num_value_heads * shape.value_head_dim
    state = recurrent_bytes(model) / model.layer_types.count("linear_attention")
    weights = model.hidden_size * (channels + width + 2 * heads + width)
    cells = heads * shape.key_head_dim * shape.value_head_dim
    return 2 * state, 2 * weights + 2 * shape.conv_kernel * channels + DELTA_OPERATIONS * cells


def _layer_parts(
    sizes: Sizes, layer: int, device: Device, experts_per_token: int, hit_rate: float, position: int
) -> list[Part]:
    missed = (1 - hit_rate) * experts_per_token * sizes.records[layer].stride
    return [
        *_on_gpu(layer_work(sizes, layer, experts_per_token, position), device),
        Part("host", 1, 0, 0, ROUND_TRIP_SECONDS),
        Part("reads", 1, missed, 0, missed / (device.disk_gigabytes_per_second * GB)),
    ]


def _hidden(layer: Sequence[Part]) -> float:
    """What the shared expert saves by running beside the wait. Nothing else can: the router decides what is read,

    and the K experts are computed in one launch.
    """
    seconds = {part.name: part.seconds for part in layer}
    return min(seconds["shared"], seconds["host"] + seconds["reads"])


def _together(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Parts of the same name added up, in the order of a token."""
    named = [[part for part in parts if part.name == name] for name in NAMES]
    return tuple(_sum(alike) for alike in named if alike)


def _sum(alike: Sequence[Part]) -> Part:
    size, operations = sum(part.bytes for part in alike), sum(part.operations for part in alike)
    seconds = sum(part.seconds for part in alike)
    return Part(alike[0].name, sum(part.times for part in alike), size, operations, seconds)


def _on_gpu(work: Sequence[tuple[Name, Work]], device: Device) -> list[Part]:
    return [Part(name, 1, each.bytes, each.operations, _seconds(each, device)) for name, each in work]


def _seconds(work: Work, device: Device) -> float:
    """The slower of moving and computing; a device whose peak is not known is not limited by it."""
    moving = work.bytes / (device.memory_gigabytes_per_second * GB)
    return max(moving, work.operations / (device.gpu_teraflops * 1e12)) if device.gpu_teraflops else moving
