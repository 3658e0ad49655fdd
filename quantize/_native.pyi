import numpy as np
from numpy.typing import NDArray

INSTRUCTION_SETS: tuple[str, ...]

def instruction_set() -> str: ...
def dequantize(
    dtype: str,
    bits: int,
    group_size: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    biases: NDArray[np.uint8],
    weights: NDArray[np.uint8],
) -> None: ...
def quantize_floats(
    dtype: str,
    weights: NDArray[np.uint8],
    method: str,
    cols: int,
    target_bits: int,
    target_group_size: int,
    target_codes: NDArray[np.uint8],
    target_scales: NDArray[np.uint8],
    target_biases: NDArray[np.uint8],
) -> int: ...
def quantize_affine(
    dtype: str,
    bits: int,
    group_size: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    biases: NDArray[np.uint8],
    method: str,
    cols: int,
    target_bits: int,
    target_group_size: int,
    target_codes: NDArray[np.uint8],
    target_scales: NDArray[np.uint8],
    target_biases: NDArray[np.uint8],
) -> int: ...
