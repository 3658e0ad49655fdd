"""How fast the GPU computes with expert records, for forecasts: one token's at a time, all resident."""

import numpy as np

from ....layout.reader import Pack
from ...speed import records_to_visit, seconds
from .backend import MetalBackend
from .launches import slot


def kernel_bandwidth(pack: Pack, backend: MetalBackend, experts_per_token: int) -> float:
    """Bytes of expert records computed with per second, in GB/s (10^9 bytes)."""
    stride, k = pack.records[0].stride, experts_per_token
    count = records_to_visit(pack, k) // k * k
    records = backend.slots.reserve(count * stride).reshape(count, stride)
    for expert, record in enumerate(records):
        record[:] = pack.read_record(0, expert)
    table = backend.device.buffer(count * len(slot(0, 0)), "slots of all records")
    table.bytes[:] = np.frombuffer(b"".join(map(backend.slot, records)), np.uint8)
    layout = backend.layout(pack.records[0])
    x = backend.vector(np.random.Generator(np.random.PCG64(0)).standard_normal((1, pack.model.hidden_size), np.float32))

    def visit_all() -> None:
        with backend.forward():
            for first in range(0, count, k):
                backend.one_tokens_experts(layout, (table, first * len(slot(0, 0))), x, k)

    return count * stride / seconds(visit_all) / 1e9
