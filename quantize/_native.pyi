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
def dequantize_grids(
    cols: int,
    bits: int,
    group_size: int,
    table: NDArray[np.int16],
    codes: NDArray[np.uint8],
    grids: NDArray[np.uint8],
    scales: NDArray[np.uint8],
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
    importance: NDArray[np.float32] | None,
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
    importance: NDArray[np.float32] | None,
) -> int: ...
def quantize_floats_to_grids(
    dtype: str,
    weights: NDArray[np.uint8],
    cols: int,
    target_bits: int,
    target_group_size: int,
    target_table: NDArray[np.int16],
    target_codes: NDArray[np.uint8],
    target_grids: NDArray[np.uint8],
    target_scales: NDArray[np.uint8],
    importance: NDArray[np.float32] | None,
) -> int: ...
def quantize_affine_to_grids(
    dtype: str,
    bits: int,
    group_size: int,
    codes: NDArray[np.uint8],
    scales: NDArray[np.uint8],
    biases: NDArray[np.uint8],
    cols: int,
    target_bits: int,
    target_group_size: int,
    target_table: NDArray[np.int16],
    target_codes: NDArray[np.uint8],
    target_grids: NDArray[np.uint8],
    target_scales: NDArray[np.uint8],
    importance: NDArray[np.float32] | None,
) -> int: ...
def coefficient_count(cols: int) -> int: ...
def factorise(
    hessian: NDArray[np.float32],
    damping: float,
    coefficients: NDArray[np.float32],
    importance: NDArray[np.float32],
) -> str: ...
def feedback(
    weights: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    importance: NDArray[np.float32],
    target_bits: int,
    target_group_size: int,
    target_codes: NDArray[np.uint8],
    target_scales: NDArray[np.uint8],
    target_biases: NDArray[np.uint8],
) -> None: ...
def grid_feedback(
    weights: NDArray[np.float32],
    coefficients: NDArray[np.float32],
    importance: NDArray[np.float32],
    target_table: NDArray[np.int16],
    target_group_size: int,
    target_codes: NDArray[np.uint8],
    target_grids: NDArray[np.uint8],
    target_scales: NDArray[np.uint8],
) -> None: ...
def output_error(errors: NDArray[np.float32], moments: NDArray[np.float32]) -> float: ...
