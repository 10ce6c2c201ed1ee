"""fuse-conv-scale: normalisation, scale and shift per channel disappear into the convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.program import Program
from miaotui.passes.fusion import FuseConvScale
from support.rewriting import check, operators, reasons, run_pass

RANDOM = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return RANDOM.standard_normal(shape).astype(np.float32)


def conv(b: Builder, x: ir.Value, bias: bool = False, weight: ir.Value | None = None) -> ir.Value:
    weight = weight or b.weight("w", normal(6, 2, 3, 3))
    return b.op(
        "Conv", x, weight, *([b.weight("bias", normal(6))] if bias else []), group=2, pads=[1, 1, 1, 1]
    )


def after(op_type: str, operand: np.ndarray[Any, Any] | None = None, bias: bool = False) -> Program:
    b = Builder()
    y = conv(b, b.input("x", ("batch", 4, "h", "w")), bias)
    if op_type == "BatchNormalization":
        statistics = [
            b.weight(n, v) for n, v in zip("gbmv", (*normal(3, 6), RANDOM.random(6) + 0.1), strict=True)
        ]
        b.output(b.op(op_type, y, *statistics, epsilon=1e-3), "y")
    else:
        b.output(b.op(op_type, y, b.weight("other", operand)), "y")
    return b.program()


FEEDS = [{"x": normal(1, 4, 5, 7)}, {"x": normal(3, 4, 8, 6)}]


@pytest.mark.parametrize("bias", [False, True])
def test_batch_normalization_is_folded(bias: bool) -> None:
    program = after("BatchNormalization", bias=bias)
    check(FuseConvScale(), program, FEEDS)
    assert operators(program) == {"Conv": 1}


@pytest.mark.parametrize("op_type", ["Mul", "Div", "Add", "Sub"])
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
def test_a_value_per_channel_is_folded(op_type: str, shape: tuple[int, ...]) -> None:
    program = after(op_type, normal(*shape) + np.float32(2))
    check(FuseConvScale(), program, FEEDS)
    assert operators(program) == {"Conv": 1}


def test_the_scaled_weight_is_computed_only_when_read() -> None:
    program = after("BatchNormalization")
    run_pass(FuseConvScale(), program)
    assert isinstance(program.main.graph.initializers["w_scaled"].const_value, ir.LazyTensor)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("per position", "not one value per channel"),
        ("read twice", "own result is read too"),
        ("weight shared", "used elsewhere too"),
        ("weight varies", "not constant"),
        ("division by zero", "not finite"),
    ],
)
def test_declines(case: str, reason: str) -> None:
    b = Builder()
    x = b.input("x", (1, 4, 5, 6))
    shared = b.weight("w", normal(6, 2, 3, 3))
    y = conv(b, x, weight=b.input("w_in", (6, 2, 3, 3)) if case == "weight varies" else shared)
    other = (
        normal(6) if case == "per position" else np.zeros((6, 1, 1)) if "zero" in case else normal(6, 1, 1)
    )
    b.output(b.op("Div" if "zero" in case else "Mul", y, b.weight("other", other)), "y")
    if case == "read twice":
        b.output(b.op("Neg", y), "z")
    if case == "weight shared":
        b.output(conv(b, x, weight=shared), "z")
    assert reason in reasons(run_pass(FuseConvScale(), b.program()))


def test_a_residual_is_no_candidate() -> None:
    b = Builder()
    x = b.input("x", (1, 4, 5, 5))
    b.output(b.op("Add", conv(b, x), conv(b, x, weight=b.weight("w2", normal(6, 2, 3, 3)))), "y")
    result = run_pass(FuseConvScale(), b.program())
    assert (result.changed, result.declined) == (0, ())
