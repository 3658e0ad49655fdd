"""Machines that packs are planned for without being there: what others published about them.

Every figure names its source. Nothing of ours was run on any of them, and no figure here is a measurement of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..manifests.errors import UsageError

GIB = 2**30
SPECIFIED = "the maker's specification"
GEN4_DRIVE = "what PCIe 4.0 NVMe drives are sold as"
DESKTOP = "computed from two channels of DDR5-5600"


@dataclass(frozen=True)
class Device:
    """A machine as published: `memory` in bytes, bandwidths in GB/s (10^9 bytes), and where each figure comes from.

    `usable` is the share of the memory that one process may take. For a graphics card, `memory` is the card's own.
    `gpu_teraflops` is the GPU's peak in float32 (10^12 operations/s), for those Apple devices of which we predict a
    timeline.
    """

    name: str
    title: str
    memory: int
    memory_gigabytes_per_second: float
    disk_gigabytes_per_second: float
    memory_source: str
    disk_source: str
    usable: float = 0.75
    gpu_teraflops: float | None = None
    gpu_source: str = ""


DEVICES: Sequence[Device] = (
    Device(
        "iphone-17-pro",
        "iPhone 17 Pro, 512 GB or more",
        12 * GIB,
        76.8,
        3.2,
        "computed from LPDDR5X-9600 on 64 bits; analysts of the A19 Pro report 75.8",
        "a storage benchmark of the 512 GB model, sequential; the 256 GB model reached half of it",
        usable=0.5,  # iOS ends an app long before all memory is used
        gpu_teraflops=2.49,
        gpu_source="computed from 768 lanes at 1620 MHz, as the press reported of the A19 Pro",
    ),
    Device(
        "m2-mini-16gb",
        "Mac mini, M2, 16 GB, 256 GB SSD",
        16 * GIB,
        100,
        1.5,
        SPECIFIED,
        "a user's measurement, slotstream issue 5 and its hardware notes",
    ),
    Device(
        "m4-air-32gb",
        "MacBook Air, M4, 32 GB",
        32 * GIB,
        120,
        2.4,
        SPECIFIED,
        "streamlx's README",
    ),
    Device(
        "m3-max-48gb",
        "MacBook Pro, M3 Max, 48 GB",
        48 * GIB,
        400,
        17.5,
        SPECIFIED,
        "Flash-MoE's authors on their machine; nobody else confirms it",
        gpu_teraflops=14.3,
        gpu_source="computed from 5120 lanes at 1398 MHz, as hmc-tech.com lists 40 cores; radargit.com says 16.4",
    ),
    Device(
        "m4-max-64gb",
        "MacBook Pro, M4 Max, 64 GB",
        64 * GIB,
        546,
        7.3,
        SPECIFIED,
        "computed from a press review, whose M5 Max read 13.6 GB/s sequentially, 86 % more than its M4 Max",
    ),
    Device(
        "m5-pro-48gb",
        "MacBook Pro, M5 Pro, 48 GB",
        48 * GIB,
        307,
        17.3,
        SPECIFIED,
        "slotstream's measurements: random reads of 2.76 MB, 4 or more at once",
    ),
    Device(
        "m5-max-128gb",
        "MacBook Pro, M5 Max with 40 GPU cores, 128 GB",
        128 * GIB,
        614,
        14.1,
        SPECIFIED,
        "ds4 issue 491: random reads of 9.3 MiB by 9 threads",
    ),
    Device(
        "gb10-128gb",
        "GB10 desktop, 128 GB",
        128 * GIB,
        273,
        6.4,
        SPECIFIED,
        "a user's measurement of the drive it is sold with, deepseek-v41-flash-spark issue 2",
    ),
    Device("rtx-3060-12gb", "RTX 3060 beside a PCIe 4.0 drive", 12 * GIB, 360, 7.0, SPECIFIED, GEN4_DRIVE),
    Device("rtx-4090-24gb", "RTX 4090 beside a PCIe 4.0 drive", 24 * GIB, 1008, 7.0, SPECIFIED, GEN4_DRIVE),
    Device("rtx-5090-32gb", "RTX 5090 beside a PCIe 4.0 drive", 32 * GIB, 1792, 7.0, SPECIFIED, GEN4_DRIVE),
    Device("desktop-64gb", "desktop with 64 GB and a PCIe 4.0 drive", 64 * GIB, 89.6, 7.0, DESKTOP, GEN4_DRIVE),
)


def device(name: str) -> Device:
    """The device of that name. Raises UsageError, which lists all, for any other."""
    found = next((each for each in DEVICES if each.name == name), None)
    if found is None:
        raise UsageError(f"there is no device {name!r}; known are {', '.join(each.name for each in DEVICES)}")
    return found
