"""raise-linear, fold-conv-affine, fold-conv-pad, raise-global-pool: products with constants in one form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.ir.provenance import sources
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import FoldConstants
from miaotui.passes.raising import FoldConvAffine, FoldConvPad, RaiseGlobalPool, RaiseLinear
from support.graphs import graph, normal
from support.rewriting import check, operators, reasons

IMAGE = "(float[b, 4, 6, 6] x) => (float[b, 6, h, w] y)"
CONV = "c = Conv<pads=[1, 1, 1, 1]>(x, w, bias) "
STATISTICS = {"g": normal(6), "e": normal(6), "m": normal(6), "v": np.abs(normal(6)) + 0.1}
NORM = "y = BatchNormalization(c, g, e, m, v)"
IMAGES = [{"x": normal(2, 4, 6, 6)}, {"x": normal(1, 4, 6, 6)}]


def test_batch_normalization_is_folded_into_the_convolution() -> None:
    body = CONV + "y = BatchNormalization<epsilon=1e-3>(c, g, e, m, v)"
    program = graph(IMAGE, body, w=normal(6, 4, 3, 3), bias=normal(6), **STATISTICS)
    check(FoldConvAffine(), program, IMAGES, tolerance=1e-5)
    assert operators(program) == {"Conv": 1}
    (conv,) = program.main.graph
    assert {s.op for s in sources(conv)} == {"Conv_0", "BatchNormalization_1"}
    assert conv.outputs[0].name == "y"


def test_batch_normalization_is_folded_into_a_transposed_convolution_and_a_gemm() -> None:
    body = "c = ConvTranspose(x, w) y = BatchNormalization(c, g, e, m, v)"
    program = graph(IMAGE, body, w=normal(4, 6, 3, 3), **STATISTICS)
    check(FoldConvAffine(), program, IMAGES, tolerance=1e-5)
    assert operators(program) == {"ConvTranspose": 1}
    signature = "(float[b, 4] x) => (float[b, 6] y)"
    for transposed in (0, 1):
        body = f"c = Gemm<transB={transposed}>(x, w, bias) y = BatchNormalization(c, g, e, m, v)"
        weight = normal(6, 4) if transposed else normal(4, 6)
        program = graph(signature, body, w=weight, bias=normal(6), **STATISTICS)
        check(FoldConvAffine(), program, [{"x": normal(3, 4)}], tolerance=1e-5)
        assert operators(program) == {"Gemm": 1}


def test_scale_and_shift_per_channel_are_folded_one_after_the_other() -> None:
    body = CONV + "s = Mul(c, scale) t = Add(shift, s) u = Sub(t, mean) y = Div(u, two)"
    constants = {"scale": normal(6, 1, 1), "shift": normal(1, 6, 1, 1), "mean": normal(6, 1, 1), "two": 2.0}
    program = graph(IMAGE, body, w=normal(6, 4, 3, 3), bias=normal(6), **constants)
    check(FoldConvAffine(), program, IMAGES, tolerance=1e-5)
    assert operators(program) == {"Conv": 1}


def test_folded_weights_are_not_computed_before_they_are_read() -> None:
    body = CONV + "y = BatchNormalization(c, g, e, m, v)"
    program = graph(IMAGE, body, w=normal(6, 4, 3, 3), bias=normal(6), **STATISTICS)
    FoldConvAffine().run(program, PassContext())
    (conv,) = program.main.graph
    assert conv.inputs[1] is not None and isinstance(conv.inputs[1].const_value, ir.LazyTensor)


@pytest.mark.parametrize(
    ("signature", "body", "reason"),
    [
        (
            IMAGE[:-1] + ", float[b, 6, h, w] c)",
            CONV + "y = BatchNormalization(c, g, e, m, v)",
            "is a graph output",
        ),
        (IMAGE, CONV + "n = BatchNormalization(c, g, e, m, v) y = Add(n, c)", "is read elsewhere"),
        (
            "(float[b, 4, 6, 6] x, float[6, 4, 3, 3] k) => (float[b, 6, h, w] y)",
            CONV.replace("w,", "k,") + "y = BatchNormalization(c, g, e, m, v)",
            "the weight is not constant",
        ),
        (
            IMAGE,
            CONV + "n = BatchNormalization(c, g, e, m, v) d = Conv<pads=[1, 1, 1, 1]>(x, w) y = Add(n, d)",
            "the weight has other uses",
        ),
    ],
    ids=["output", "read twice", "weight varies", "weight shared"],
)
def test_leaves_normalization_that_can_not_be_folded(signature: str, body: str, reason: str) -> None:
    program = graph(signature, body, w=normal(6, 4, 3, 3), bias=normal(6), **STATISTICS)
    before = print_program(program)
    result = FoldConvAffine().run(program, PassContext())
    assert not result.changed and reason in reasons(result)
    assert print_program(program) == before


def test_leaves_a_scale_along_the_width() -> None:
    program = graph(IMAGE, CONV + "y = Mul(c, scale)", w=normal(6, 4, 3, 3), bias=normal(6), scale=normal(6))
    assert not FoldConvAffine().run(program, PassContext()).changed


def test_zero_padding_is_folded_into_the_convolution() -> None:
    body = "p = Pad(x, pads) y = Conv<pads=[1, 0, 0, 1]>(p, w)"
    program = graph(IMAGE, body, w=normal(6, 4, 3, 3), pads=[0, 0, 1, 2, 0, 0, 3, 0])
    check(FoldConvPad(), program, IMAGES)
    (conv,) = program.main.graph
    assert tuple(conv.attributes["pads"].value) == (2, 2, 3, 1)


@pytest.mark.parametrize(
    "pad",
    ["Pad(x, pads, one)", 'Pad<mode="reflect">(x, pads)', "Pad(x, channels)"],
    ids=["ones", "reflect", "channels"],
)
def test_leaves_padding_that_is_not_zeros_around_the_image(pad: str) -> None:
    width = 4 if "channels" not in pad else 6
    body = f"p = {pad} y = Conv(p, w)"
    constants = {"pads": [0, 0, 1, 1, 0, 0, 1, 1], "channels": [0, 1, 0, 0, 0, 1, 0, 0], "one": 1.0}
    program = graph(IMAGE, body, w=normal(6, width, 3, 3), **constants)
    result = FoldConvPad().run(program, PassContext())
    assert not result.changed and reasons(result)


@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_an_image_is_a_global_pool(keep: int) -> None:
    result = "float[b, 4, 1, 1] y" if keep else "float[b, 4] y"
    body = f"y = ReduceMean<keepdims={keep}>(x, axes)"
    program = graph(f"(float[b, 4, 6, 6] x) => ({result})", body, axes=[-1, 2])
    check(RaiseGlobalPool(), program, IMAGES)
    assert operators(program)["GlobalAveragePool"] == 1


def test_gemm_between_reshapes_is_lifted_to_a_product_of_three_dimensions() -> None:
    body = "f = Reshape(x, flat) g = Gemm(f, w, bias) y = Reshape(g, wide)"
    signature = "(float[2, 3, 4] x) => (float[2, 3, 6] y)"
    program = graph(signature, body, flat=[-1, 4], wide=[2, 3, 6], w=normal(4, 6), bias=normal(6))
    check(RaiseLinear(), program, [{"x": normal(2, 3, 4)}])
    assert operators(program) == {"MatMul": 1, "Add": 1}


def test_gemm_of_two_dimensions_keeps_its_transposed_weight() -> None:
    signature = "(float[b, 4] x) => (float[b, 6] y)"
    kept = graph(signature, "y = Gemm<transB=1>(x, w, bias)", w=normal(6, 4), bias=normal(6))
    assert not RaiseLinear().run(kept, PassContext()).changed
    split = graph(signature, "y = Gemm(x, w, bias)", w=normal(4, 6), bias=normal(6))
    check(RaiseLinear(), split, [{"x": normal(3, 4)}])
    assert operators(split) == {"MatMul": 1, "Add": 1}


def test_a_large_weight_is_transposed_only_when_it_is_written() -> None:
    body = "f = Reshape(x, flat) g = Gemm<transB=1>(f, w) y = Reshape(g, wide)"
    signature = "(float[2, 3, 300] x) => (float[2, 3, 400] y)"
    program = graph(signature, body, flat=[-1, 300], wide=[2, 3, 400], w=normal(400, 300))
    feeds = [{"x": normal(2, 3, 300)}]
    check([RaiseLinear(), FoldConstants()], program, feeds, tolerance=1e-5)
    (product,) = program.main.graph
    assert product.op_type == "MatMul" and product.inputs[1] is not None
    assert isinstance(product.inputs[1].const_value, ir.LazyTensor)


def test_leaves_a_gemm_that_scales() -> None:
    program = graph("(float[b, 4] x) => (float[b, 6] y)", "y = Gemm<alpha=0.5>(x, w)", w=normal(4, 6))
    result = RaiseLinear().run(program, PassContext())
    assert not result.changed and "alpha" in reasons(result)
