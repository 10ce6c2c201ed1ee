"""Native lowering of patch convolutions and of sizes that lengths tell: the same results, reasons by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.dialect import MIAOTUI
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.lowering.native import NativeKeys, NativePatches
from support.rewriting import assert_same, operators, run_pass

RNG = np.random.default_rng(3)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def convolution(shape: tuple[int | str, ...], kernel: tuple[int, ...], **attributes: Any) -> Program:
    b = Builder()
    channels = shape[1] if isinstance(shape[1], int) else 3
    weight = b.weight("w", normal(5, channels // attributes.get("group", 1), *kernel))
    attributes = {"strides": list(kernel)} | attributes
    x = b.input("x", shape)
    b.output(b.op("Conv", x, weight, b.weight("bias", normal(5)), **attributes), "y")
    return b.program()


@pytest.mark.parametrize(
    ("shape", "kernel"),
    [
        (("batch", 3, 8, 12), (4, 4)),
        (("batch", 2, 6, 6), (3, 2)),
        ((2, 3, 12), (4,)),
        ((1, 2, 4, 4, 6), (2, 4, 3)),
    ],
)
def test_patches_are_a_linear_layer(shape: tuple[int | str, ...], kernel: tuple[int, ...]) -> None:
    made = convolution(shape, kernel)
    feeds = {"x": normal(*(n if isinstance(n, int) else 2 for n in shape))}
    wanted = evaluate(made.main, feeds)
    assert run_pass(NativePatches(), made).changed == 1
    assert operators(made) == {"Reshape": 3, "Transpose": 2, f"{MIAOTUI}::Linear": 1}
    assert_same(wanted, evaluate(made.main, feeds))


@pytest.mark.parametrize(
    ("shape", "attributes", "why"),
    [
        (("batch", 4, 8, 8), {"strides": [2, 2]}, "overlap"),
        (("batch", 4, 8, 8), {"pads": [0, 0, 4, 4]}, "padded"),
        (("batch", 4, 8, 8), {"group": 2}, "groups"),
        (("batch", 4, 9, 8), {}, "whole patches"),
        (("batch", 4, "height", 8), {}, "whole patches"),
    ],
)
def test_other_convolutions_stay(shape: tuple[int | str, ...], attributes: dict[str, Any], why: str) -> None:
    made = convolution(shape, (4, 4), **attributes)
    result = run_pass(NativePatches(), made)
    assert not result.changed
    assert why in result.declined[0].text


def counting(greatest: str) -> Program:
    b = Builder()
    ids, lengths = b.input("ids", ("batch", "tokens"), INT64), b.input("lengths", ("batch",), INT64)
    tokens = b.op("Shape", ids, start=1, end=2)
    total = b.op("Squeeze", b.op("Add", b.op(greatest, lengths), tokens))
    zero, one = b.weight("zero", np.int64(0)), b.weight("one", np.int64(1))
    b.output(b.op("Neg", b.op("Unsqueeze", b.op("Range", zero, total, one), b.weight("axis", [1]))), "y")
    return b.program()


def test_the_keys_of_the_longest_row_get_a_name() -> None:
    made = counting("ReduceMax")
    assert str(made.outputs()[0]).startswith("y: int64[unk")
    assert run_pass(NativeKeys(), made).changed == 1
    assert str(made.outputs()[0]) == "y: int64[keys, 1]"


def test_other_open_sizes_keep_theirs() -> None:
    assert not run_pass(NativeKeys(), counting("ReduceMin")).changed
