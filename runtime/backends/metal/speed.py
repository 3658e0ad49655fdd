"""How fast the GPU computes with expert records, for forecasts: one token's at a time, all resident."""

import time

import numpy as np

from ....layout.reader import Pack
from .backend import MetalBackend
from .launches import slot

BYTES = 128 * 1024 * 1024  # of records: no cache holds them
LEAST_SECONDS = 0.5


def kernel_bandwidth(pack: Pack, backend: MetalBackend, experts_per_token: int) -> float:
    """Bytes of expert records computed with per second, in GB/s (10^9 bytes): the median of some rounds."""
    stride, k = pack.records[0].stride, experts_per_token
    count = min(pack.model.num_experts, max(1, BYTES // stride)) // k * k
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

    visit_all()
    start = time.perf_counter()
    taken: list[float] = []
    while not taken or time.perf_counter() - start < LEAST_SECONDS:
        began = time.perf_counter()
        visit_all()
        taken.append(time.perf_counter() - began)
    return count * stride / float(np.median(taken)) / 1e9
