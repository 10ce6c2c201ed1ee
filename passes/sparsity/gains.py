"""Whether zeros in a weight make it faster on the target, and if not, why, and what would."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from ..base import PassContext
from .patterns import TILE, used

MARGIN = 1.1
"""How many times as fast as the kernel it replaces a sparse one has to be."""

_SPARSELT = (
    "ONNX Runtime multiplies 2:4 weights on CUDA as dense ones: sparse tensor cores take cuSPARSELt, "
    "which it does not call"
)
_ANYWHERE = "no kernel of ONNX Runtime or of our own skips {} zeros on a CPU"
FORCE = "force=true prunes it all the same"


@dataclass(frozen=True, slots=True)
class Gain:
    """``times``: as fast as dense float32; ``refusal``: why it is not to be taken, ``""`` if it is."""

    times: float
    rival: str = ""
    refusal: str = ""

    def __str__(self) -> str:
        return f"{self.times:.2f} x as fast as dense float32{self.rival}"


def gain(pattern: str, rows: int, columns: int, density: float, precision: str, context: PassContext) -> Gain:
    """What a weight [rows, columns] of that ``density`` gives against dense kernels of ``precision``."""
    times = context.speed(pattern, rows, columns, density)
    if context.speed(pattern, rows, columns, 0.0) <= 1:
        return Gain(times, refusal=f"{_missing(pattern, context.target.device)}; {FORCE}")
    if precision in ("fp16", "bf16"):
        fact = f"its numbers are to be {precision}, and the sparse kernel reads float32"
        return Gain(times, refusal=f"{fact}; use --precision fp32")
    dense = context.speed(precision, rows, columns, 1.0) if precision != "fp32" else 1.0
    rival = f", {precision} {dense:.2f} x" if precision != "fp32" else ""
    if times < MARGIN * dense:
        fact = f"at density {density:g} the sparse kernel is {times:.2f} x as fast as dense float32{rival}"
        fix = "a higher sparsity may pay" if precision == "fp32" else "a higher sparsity or fp32 may pay"
        return Gain(times, refusal=f"{fact}: {fix}; {FORCE}")
    return Gain(times, rival)


def _missing(pattern: str, device: str) -> str:
    if device == "cuda":
        if pattern == "2:4":
            return _SPARSELT
        return f"ONNX Runtime has no kernel for {pattern} sparse weights on CUDA"
    if pattern == "block":
        return "ONNX Runtime multiplies blocks of zeros like all others; --backend native skips them"
    fact = _ANYWHERE.format("single" if pattern == "unstructured" else "2:4")
    return f"{fact}; block:0.8 with --backend native is faster"


def stays_sparse(tensor: ir.TensorProtocol, turned: bool, bits: int, context: PassContext) -> str:
    """Why a float32 weight is better left as it is than rounded to ``bits``: its zeros; ``""`` if it is not.

    A look at its first tiles spares reading dense weights. ``turned``: it is stored [columns, rows].
    """
    rows, columns = tensor.shape.numpy()[:: -1 if turned else 1]
    precision = "fp16" if bits == 16 else f"int{bits}"
    dense = context.speed(precision, rows, columns, 1.0)
    if context.speed("block", rows, columns, 0.0) <= dense:
        return ""
    array = tensor.numpy().T if turned else tensor.numpy()
    for part in (array[: 4 * TILE], array):
        share = used(part, "block")
        times = context.speed("block", rows, columns, share)
        if times <= dense:
            return ""
    gains = f"{times:.2f} x as fast as dense float32, {precision} {dense:.2f} x"
    return f"{1 - share:.0%} of its 1x16 blocks are zero, which the sparse kernel skips: {gains}"
