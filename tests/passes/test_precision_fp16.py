"""float16 conversion on small graphs: what turns, what stays and why, and that no NaN is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.onnxruntime import kernels
from miaotui.compiler.ir.shapes import infer_shapes
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext, PassResult
from miaotui.passes.precision import ConvertFp16
from miaotui.passes.precision.half import GREATEST, MASK, half, loss
from miaotui.passes.precision.ranges import ranges_of
from support.rewriting import operators, ort_run, run_pass

Arrays = dict[str, np.ndarray[Any, Any]]
LOWEST = "-3.4028234663852886e38"


def program(text: str, **weights: np.ndarray[Any, Any]) -> Program:
    """A parsed graph whose inputs named in ``weights`` are initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> {text}')
    for index, node in enumerate(proto.graph.node):
        node.name = f"n{index}"
        for attribute in node.attribute:
            for inner in attribute.g.node:
                inner.name = f"n{index}.{attribute.name}.{inner.output[0]}"
    inputs = [v for v in proto.graph.input if v.name not in weights]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(v, k) for k, v in weights.items())
    made = Program({"main": ir.from_proto(proto)})
    infer_shapes(made)
    return made


def cuda(ranges: dict[str, tuple[float, float]] | None = None) -> PassContext:
    return PassContext(Target("cuda"), lambda node: kernels.find("CUDA", node), ranges)


def measure(made: Program, feeds: Arrays) -> dict[str, tuple[float, float]]:
    tapped = made.clone()
    graph = tapped.main.graph
    graph.outputs.extend(v for n in graph for v in n.outputs if not v.is_graph_output())
    return ranges_of({**feeds, **ort_run(tapped, feeds, optimize=False)})


def convert(
    made: Program, ranges: dict[str, tuple[float, float]] | None = None, **options: Any
) -> PassResult:
    return run_pass(ConvertFp16(**options), made, cuda(ranges))


def kept(result: PassResult) -> dict[str, str]:
    return {note.node: note.text for note in result.declined}


def dtypes(made: Program) -> dict[str | None, ir.DataType | None]:
    return {v.name: v.dtype for n in made.main.graph for v in n.outputs}


W = np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4)


def test_interface_and_names_stay_and_weights_turn() -> None:
    made = program(
        "g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { a = MatMul(x, w) y = Relu(a) }", w=W
    )
    source = made.clone()
    assert convert(made).changed == 2
    assert [str(s) for s in (*made.inputs(), *made.outputs())] == ["x: float32[N, 4]", "y: float32[N, 4]"]
    assert dtypes(made)["a"] == ir.DataType.FLOAT16
    assert [
        v.dtype for v in made.main.graph.initializers.values() if v.shape is not None and len(v.shape) == 2
    ] == [ir.DataType.FLOAT16]
    x = {"x": np.float32([[1, 2, 3, 4]])}
    np.testing.assert_allclose(ort_run(made, x)["y"], ort_run(source, x)["y"], atol=4e-3)


def test_the_interface_turns_too_where_that_is_asked_for() -> None:
    outputs = "(float[N, 4] a, float[N, 4] y, int64[N] j, float[N, 4] t)"
    text = f"g (float[N, 4] x, int64[N] i, float[4, 4] w) => {outputs}"
    made = program(f"{text} {{ a = MatMul(x, w) y = Relu(a) j = Neg(i) t = Tan(y) }}", w=W)
    source = made.clone()
    result = convert(made, ranges={"x": (-4.0, 4.0), "y": (0.0, 9.0)}, io=True)
    assert [str(s) for s in (*made.inputs(), *made.outputs())] == [
        "x: float16[N, 4]", "i: int64[N]",
        "a: float16[N, 4]", "y: float16[N, 4]", "j: int64[N]", "t: float16[N, 4]",
    ]  # fmt: skip
    assert operators(made)["Cast"] == 2, "around Tan, which has no kernel in 16 bits, and nowhere else"
    assert [str(note) for note in result.hits[-4:]] == [
        "x: input is float16", "a: output is float16", "y: output is float16", "t: output is float16",
    ]  # fmt: skip
    x, i = np.float32([[1, 2, 3, 4]]), np.int64([1])
    got, wanted = ort_run(made, {"x": x.astype(np.float16), "i": i}), ort_run(source, {"x": x, "i": i})
    for name in wanted:
        np.testing.assert_allclose(got[name], wanted[name], rtol=1e-2, atol=4e-3)


def test_weights_are_converted_when_read_and_not_kept() -> None:
    made = program("g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { y = MatMul(x, w) }", w=W)
    convert(made)
    weight = made.main.graph.initializers["w.fp16"].const_value
    assert isinstance(weight, ir.LazyTensor) and not weight.cache
    np.testing.assert_array_equal(weight.numpy(), W.astype(np.float16))
    assert "w" not in made.main.graph.initializers


def test_one_cast_per_value() -> None:
    made = program(
        "g (float[N] x) => (float[N] y, float[N] z) { a = Relu(x) b = Neg(x) y = Add(a, b) z = Tanh(x) }"
    )
    convert(made, ranges={"x": (-1.0, 1.0)})
    assert operators(made)["Cast"] == 3, "one for x, one for each output"


def test_constant_beyond_range_keeps_its_reader() -> None:
    made = program("g (float[N] x) => (float[N] y) <float big = {100000.0}> { a = Relu(x) y = Mul(a, big) }")
    assert "reaches 1e+05" in kept(convert(made))["n1"]


def test_epsilon_that_vanishes_keeps_its_reader() -> None:
    made = program("g (float[N] x) => (float[N] y) <float eps = {1e-12}> { a = Abs(x) y = Add(a, eps) }")
    assert "0 in float16" in kept(convert(made))["n1"]


def test_mask_constants_saturate_and_leave_room_for_scores() -> None:
    made = program(
        "g (bool[N, 4] m, float[N, 4] s) => (float[N, 4] p) "
        f"<float zero = {{0.0}}, float low = {{{LOWEST}}}> "
        "{ b = Where(m, zero, low) a = Add(s, b) p = Softmax(a) }"
    )
    source = made.clone()
    assert kept(convert(made)) in ({}, {"n_clip": ""}) or not [
        n for n in ("n0", "n1", "n2") if n in kept(convert(made))
    ]
    feeds = {
        "m": np.array([[True, False, True, True], [False] * 4]),
        "s": np.float32([[1, 2, 3, -40], [-40, 5, 6, 7]]),
    }
    got, wanted = ort_run(made, feeds)["p"], ort_run(source, feeds)["p"]
    assert np.isfinite(got).all(), "a row that is masked whole must not become NaN"
    np.testing.assert_allclose(got[0], wanted[0], atol=2e-3)


def test_arithmetic_mask_from_integers_is_clamped_on_the_way_in() -> None:
    made = program(
        "g (int64[N, 4] m, float[N, 4] s) => (float[N, 4] p) "
        f"<float one = {{1.0}}, float low = {{{LOWEST}}}> "
        "{ f = Cast<to=1>(m) i = Sub(one, f) b = Mul(i, low) a = Add(s, b) p = Softmax(a) }"
    )
    source = made.clone()
    result = convert(made)
    assert {n for n, why in kept(result).items() if "integers" in why} == {"n0", "n1", "n2"}
    feeds = {"m": np.int64([[1, 1, 0, 0], [0, 0, 0, 0]]), "s": np.float32([[1, 2, 3, 4], [1, 2, 3, 4]])}
    got, wanted = ort_run(made, feeds)["p"], ort_run(source, feeds)["p"]
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got[0], wanted[0], atol=2e-3)


def test_positions_stay_float32() -> None:
    freq = np.float32([[1.0, 0.01]])
    made = program(
        "g (int64[N, 1] p, float[N, 2] x, float[1, 2] f) => (float[N, 2] y) "
        "{ t = Cast<to=1>(p) a = MatMul(t, f) c = Cos(a) y = Mul(x, c) }", f=freq,
    )  # fmt: skip
    source = made.clone()
    result = convert(made)
    assert set(kept(result)) >= {"n0", "n1", "n2"} and "n3" not in kept(result)
    feeds = {"p": np.int64([[100_003], [70_001]]), "x": np.ones((2, 2), np.float32)}
    np.testing.assert_allclose(ort_run(made, feeds)["y"], ort_run(source, feeds)["y"], atol=2e-3)


def test_decomposed_rms_norm_stays_float32_from_the_square_to_the_root() -> None:
    made = program(
        "g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) "
        "<float two = {2.0}, float eps = {1e-6}, int64[1] ax = {-1}> "
        "{ h = MatMul(x, w) s = Pow(h, two) m = ReduceMean<keepdims=1>(s, ax) e = Add(m, eps) r = Sqrt(e) "
        "d = Div(h, r) y = MatMul(d, w) }", w=W,
    )  # fmt: skip
    source = made.clone()
    result = convert(made)
    assert set(kept(result)) >= {"n1", "n2", "n3", "n4", "n5"}
    assert not {"n0", "n6"} & set(kept(result))
    feeds = {"x": np.float32([[900, -800, 700, 600], [1e-4, 1e-4, -1e-4, 1e-4]])}
    np.testing.assert_allclose(ort_run(made, feeds)["y"], ort_run(source, feeds)["y"], atol=4e-3)


def test_measured_overflow_keeps_maker_and_readers_and_is_named() -> None:
    made = program(
        "g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { a = MatMul(x, w) b = Relu(a) y = Tanh(b) }",
        w=W,
    )
    feeds = {"x": np.full((1, 4), 60000, np.float32)}
    result = convert(made, {**measure(made, feeds), "x": (0.0, 1.0)})
    assert "a reaches" in kept(result)["n0"] and "reads a" in kept(result)["n1"]


def test_operator_without_a_half_kernel_stays() -> None:
    made = program("g (float[N] x) => (float[N] y) { a = Relu(x) b = Tan(a) y = Relu(b) }")
    assert "no kernel for Tan" in kept(convert(made))["n1"]


def test_float32_only_inputs_stay() -> None:
    made = program(
        "g (float[1, 1, 2, 2] x) => (float[1, 1, 4, 4] y) <float[4] scales = {1.0, 1.0, 2.0, 2.0}> "
        '{ a = Relu(x) y = Resize<mode="nearest">(a, , scales) }'
    )
    source = made.clone()
    convert(made)
    assert made.main.graph.initializers["scales"].dtype == ir.DataType.FLOAT
    feeds = {"x": np.float32([[[[1, 2], [3, 4]]]])}
    np.testing.assert_array_equal(ort_run(made, feeds)["y"], ort_run(source, feeds)["y"])


def test_second_outputs_of_another_type_stay() -> None:
    made = program(
        "g (float[N, 8] x) => (float[N, 2] v, int64[N, 2] i) <int64[1] k = {2}> "
        "{ a = Relu(x) v, i = TopK(a, k) }"
    )
    source = made.clone()
    convert(made)
    feeds = {"x": np.float32([[1, 5, 3, 2, 8, 7, 6, 4]])}
    for name, value in ort_run(source, feeds).items():
        np.testing.assert_array_equal(ort_run(made, feeds)[name], value)


def test_subgraphs_read_and_return_float32() -> None:
    made = program(
        "g (bool c, float[N] x) => (float[N] y) "
        "{ h = Relu(x) r = If (c) <then_branch = t () => (float[N] a) { a = Tanh(h) }, "
        "else_branch = e () => (float[N] b) { k = Neg(h) b = Sigmoid(k) }> y = Neg(r) }"
    )
    source = made.clone()
    assert convert(made).changed >= 4
    for c in (True, False):
        feeds = {"c": np.array(c), "x": np.float32([0.5, -2, 3])}
        np.testing.assert_allclose(ort_run(made, feeds)["y"], ort_run(source, feeds)["y"], atol=2e-3)


def test_loop_carries_float32_through_its_body() -> None:
    made = program(
        "g (int64 n, bool c, float[4] x, float[4] w) => (float[4] y, float[n, 4] all) "
        "{ h = Tanh(x) y, all = Loop (n, c, h) "
        "<body = b (int64 i, bool k, float[4] v) => (bool k2, float[4] o, float[4] s) "
        "{ k2 = Identity(k) t = Mul(v, w) o = Tanh(t) s = Neg(o) }> }",
        w=np.float32([1, 2, -1, 0.5]),
    )
    source = made.clone()
    assert convert(made).changed >= 4
    feeds = {"n": np.array(3), "c": np.array(True), "x": np.float32([0.5, -2, 3, 1])}
    for name, wanted in ort_run(source, feeds).items():
        np.testing.assert_allclose(ort_run(made, feeds)[name], wanted, atol=2e-3)


def test_options_keep_operators_and_nodes() -> None:
    text = "g (float[N] x) => (float[N] y) { a = Tanh(x) b = Relu(a) y = Neg(b) }"
    assert kept(convert(program(text), keep=("Tanh",), keep_nodes=("n2",))) == dict.fromkeys(
        ("n0", "n2"), "kept by option"
    )
    assert ConvertFp16().with_options("keep=Softmax+Exp,limit=0.25") == ConvertFp16(
        ("Softmax", "Exp"), (), 0.25
    )


def test_integers_booleans_and_doubles_are_untouched() -> None:
    made = program("g (int64[N] i, double[N] d) => (int64[N] j, double[N] e) { j = Neg(i) e = Neg(d) }")
    result = convert(made)
    assert not result.changed and not result.declined


def test_target_without_half_kernels_is_left_alone() -> None:
    made = program("g (float[N, 4] x, float[4, 4] w) => (float[N, 4] y) { y = MatMul(x, w) }", w=W)
    result = ConvertFp16().run(made, PassContext(Target("cpu"), lambda node: kernels.find("CPU", node)))
    assert not result.changed and "float16" in kept(result)["n0"]
    assert operators(made) == {"MatMul": 1}


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_converted_constants_hold_no_infinity_that_was_not_there(values: list[float]) -> None:
    source = np.array(values, np.float32)
    made = half(ir.tensor(source), "c").numpy()
    assert (np.isinf(made) <= np.isinf(source)).all()
    assert not np.isnan(made).any()
    near = np.abs(source) <= GREATEST
    np.testing.assert_array_equal(made[near], source[near].astype(np.float16))
    assert (made[np.isfinite(source) & (source < -GREATEST)] == np.float16(MASK)).all()


def test_loss_tells_rounding_from_damage() -> None:
    random = np.random.default_rng(0)
    normal = random.standard_normal((64, 64)).astype(np.float32)
    assert loss(ir.tensor(normal), saturate=False, divides=False) == ""
    assert "norm" in loss(ir.tensor(normal * np.float32(1e-7)), saturate=False, divides=False)
    assert "reaches" in loss(ir.tensor(normal * np.float32(1e6)), saturate=False, divides=False)
    assert "0 in float16" in loss(ir.tensor(np.float32([1, 1e-9])), saturate=False, divides=True)


NETS = {
    "softmax": "e = Exp(h) s = ReduceSum<keepdims=1>(e, ax) y = Div(e, s)",
    "norm": "q = ReduceL2<keepdims=1>(h, ax) c = Max(q, eps) y = Div(h, c)",
    "variance": "m = ReduceMean<keepdims=1>(h, ax) d = Sub(h, m) s = Mul(d, d) "
    "v = ReduceMean<keepdims=1>(s, ax) e = Add(v, eps) r = Sqrt(e) i = Reciprocal(r) y = Mul(d, i)",
    "layernorm": "y = LayerNormalization(h, g)",
    "gelu": 'y = Gelu<approximate="tanh">(h)',
    "attention": "u = Unsqueeze(h, zero) k = Transpose<perm=[0, 2, 1]>(u) t = MatMul(u, k) p = Softmax(t) "
    "z = MatMul(p, u) y = Squeeze(z, zero)",
    "logsumexp": "y = LogSoftmax(h)",
    "ratio": "a = Abs(h) b = Add(a, eps) c = Log(b) y = Tanh(c)",
    "powers": "a = Abs(h) s = Mul(a, a) b = Sqrt(s) y = Sub(b, a)",
}


@pytest.mark.parametrize("net", NETS)
@settings(max_examples=25, deadline=None)
@given(st.floats(-6, 6), st.integers(0, 2**31), st.booleans())
def test_measured_ranges_never_let_a_nan_or_infinity_in(
    net: str, decade: float, seed: int, spread: bool
) -> None:
    random = np.random.default_rng(seed)
    x = random.standard_normal((3, 4)).astype(np.float32) * np.float32(10**decade)
    if spread:
        x *= (10 ** random.uniform(-5, 2, x.shape)).astype(np.float32)
    made = program(
        "g (float[N, 4] x, float[4, 4] w, float[4] g) => (float y) "
        "<float eps = {1e-6}, int64[1] ax = {-1}, int64[1] zero = {0}> "
        f"{{ h = MatMul(x, w) {NETS[net]} }}",
        w=random.standard_normal((4, 4)).astype(np.float32), g=np.ones(4, np.float32),
    )  # fmt: skip
    made.main.graph.outputs[0].shape = None
    source, feeds = made.clone(), {"x": x}
    wanted = ort_run(source, feeds, optimize=False)["y"]
    convert(made, measure(made, feeds))
    got = ort_run(made, feeds, optimize=False)["y"]
    assert (np.isfinite(got) | ~np.isfinite(wanted)).all()
