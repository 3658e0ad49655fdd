"""Weight formats: how the codes, scales and biases of a quantized matrix are stored.

A format says how bits are laid out, never how they were chosen (that is a method, in `quantize`).
Source of the layout: MLX's affine quantization, w = code * scale + bias per group of inputs, codes packed along a row
as one little-endian bit stream.
"""

import re
from dataclasses import dataclass

BITS = (2, 3, 4, 6, 8)
GROUP_SIZES = (32, 64, 128)
_NAME = re.compile(r"affine([2-8])-g([1-9]\d{1,2})")


@dataclass(frozen=True)
class AffineFormat:
    """`affine{bits}-g{group_size}`: codes of `bits` bits; one scale and one bias per `group_size` inputs."""

    bits: int
    group_size: int

    def __post_init__(self) -> None:
        if self.bits not in BITS or self.group_size not in GROUP_SIZES:
            raise ValueError(f"no affine format has {self.bits} bits and groups of {self.group_size}")

    @classmethod
    def parse(cls, name: str) -> "AffineFormat":
        """The format called `name`, such as "affine2-g64". Raises ValueError for any other text."""
        match = _NAME.fullmatch(name)
        if match is None:
            raise ValueError(f"{name!r} is not a weight format; one looks like affine2-g64")
        return cls(int(match[1]), int(match[2]))

    @property
    def name(self) -> str:
        """The format's name in recipes and manifests."""
        return f"affine{self.bits}-g{self.group_size}"

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight: the code plus its share of a 16-bit scale and a 16-bit bias."""
        return self.bits + 32 / self.group_size

    def fits(self, cols: int) -> bool:
        """Whether a row of `cols` inputs divides into whole groups (then its codes fill whole 32-bit words too)."""
        return cols % self.group_size == 0

    def words(self, cols: int) -> int:
        """32-bit words of codes in one row of `cols` inputs."""
        return cols * self.bits // 32

    def groups(self, cols: int) -> int:
        """Groups, and so scales and biases, in one row of `cols` inputs."""
        return cols // self.group_size
