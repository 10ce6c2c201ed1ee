"""Native lowering of linear layers: what is taken into them computes the same, near misses are named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.dialect import MIAOTUI
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import FLOAT16, INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.quantized import blocked_weight
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.passes.base import Pass, PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.lowering.native import (
    LOWER_NATIVE,
    NativeActivation,
    NativeGate,
    NativeJoin,
    NativeLinear,
    NativeNorm,
    NativeResidual,
    NativeRows,
    NativeWeights,
)
from miaotui.passes.lowering.native.layer import Layer
from miaotui.passes.pipeline import pipeline
from support.decode_graphs import Layers, block_weights, quantized
from support.rewriting import Arrays, assert_same, operators, reasons, run_pass

RNG = np.random.default_rng(5)
COLUMNS, ROWS = 64, 48
Build = Callable[[Builder, ir.Value], ir.Value]


def normal(*shape: int) -> np.ndarray[Any, Any]:
    """Of a scale that keeps activations near one."""
    return (RNG.standard_normal(shape) / 4).astype(np.float32)


def program(build: Build, shape: Sequence[int | str] = ("batch", "tokens", COLUMNS)) -> Program:
    b = Builder()
    b.output(b.op("Neg", build(b, b.input("x", shape))), "y")
    return b.program()


def lower(step: Pass | Sequence[Pass], made: Program, tolerance: float = 2e-6) -> list[str]:
    """Run passes that keep every output; the notes of what the last one declined."""
    feeds = [{"x": normal(*(n if isinstance(n, int) else size for n in spec.shape or ()))}
             for size in (1, 3) for spec in made.inputs() if spec.name == "x"]  # fmt: skip
    wanted = [evaluate(made.main, feed) for feed in feeds]
    steps = [step] if isinstance(step, Pass) else step
    results = [run_pass(one, made) for one in steps]
    for feed, expected in zip(feeds, wanted, strict=True):
        assert_same(expected, evaluate(made.main, feed), tolerance)
    return [note.text for note in results[-1].declined]


def the(made: Program, op_type: str = "Linear") -> ir.Node:
    """The only node of a type."""
    (node,) = (node for node in made.main.graph if node.op_type == op_type)
    return node


def count(made: Program) -> Counter[str]:
    return operators(made)


def dense(b: Builder, x: ir.Value, rows: int = ROWS, columns: int = COLUMNS, bias: bool = False) -> ir.Value:
    index = len(b.graph.initializers)
    y = b.op("MatMul", x, b.weight(f"w{index}", normal(columns, rows)))
    return b.op("Add", y, b.weight(f"b{index}", normal(rows))) if bias else y


# Linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [("tokens", COLUMNS), ("batch", "tokens", COLUMNS), (2, 2, "n", COLUMNS)])
def test_a_product_with_its_bias_is_one_layer(shape: Sequence[int | str], bias: bool) -> None:
    made = program(lambda b, x: dense(b, x, bias=bias), shape)
    lower(NativeLinear(), made)
    assert count(made) == {"miaotui::Linear": 1, "Neg": 1}
    weight = the(made).inputs[4]
    assert weight is not None and weight.is_initializer() and list(weight.shape or ()) == [ROWS, COLUMNS]


@pytest.mark.parametrize("bias", [(1, ROWS), (1, 1, ROWS), (1,), ()])
def test_a_bias_may_have_axes_of_one(bias: tuple[int, ...]) -> None:
    made = program(lambda b, x: b.op("Add", b.weight("bias", normal(*bias)), dense(b, x)))
    lower(NativeLinear(), made)
    assert count(made) == {"miaotui::Linear": 1, "Neg": 1}


def test_a_bias_per_token_stays_an_addition() -> None:
    made = program(lambda b, x: b.op("Add", dense(b, x), b.weight("places", normal(3, 1))), (2, 3, COLUMNS))
    lower(NativeLinear(), made)
    assert count(made)["Add"] == 1


def test_the_entry_that_shares_a_weight_shares_it_turned() -> None:
    made = program(lambda b, x: dense(b, x))
    made.entries["other"] = made.main.clone()
    NativeLinear().run(made, PassContext())
    layers = [n for model in made.entries.values() for n in model.graph if n.op_type == "Linear"]
    tensors = [n.inputs[4].const_value for n in layers if n.inputs[4] is not None]
    assert tensors[0] is tensors[1]


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, 2.0])
@pytest.mark.parametrize("turned", [(0, 0), (0, 1), (1, 0)])
def test_gemm_in_all_its_forms(turned: tuple[int, int], alpha: float, beta: float) -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        shape = (ROWS, COLUMNS) if turned[1] else (COLUMNS, ROWS)
        parts = x, b.weight("w", normal(*shape)), b.weight("c", normal(ROWS))
        return b.op("Gemm", *parts, alpha=alpha, beta=beta, transA=turned[0], transB=turned[1])

    made = program(build, (COLUMNS, "n") if turned[0] else ("n", COLUMNS))
    lower(NativeLinear(), made, 1e-5)
    assert count(made)["miaotui::Linear"] == 1 and "Gemm" not in count(made)


@pytest.mark.parametrize("kind", [{"bits": 4, "offset": True}, {"bits": 8, "signed": True}])
def test_blocked_weights_stay_blocked(kind: dict[str, Any]) -> None:
    made = program(lambda b, x: b.op("MatMul", x, b.op("Transpose", b.weight("w", normal(ROWS, COLUMNS)))))
    block_weights(made, lambda name, w: quantized(w, block=32, **kind) if name == "w" else None)
    lower(NativeLinear(), made)
    found = blocked_weight(the(made).inputs[4])
    assert found is not None and found.shape == (ROWS, COLUMNS)
    assert "Transpose" not in count(made)


def _quantized(b: Builder, axis: int, block: int = 0, turn: bool = False) -> ir.Value:
    shape = (ROWS, COLUMNS) if turn else (COLUMNS, ROWS)
    codes = b.weight("codes", RNG.integers(-127, 128, shape).astype(np.int8))
    scales = [shape[axis]] if not block else [n // block if i == axis else n for i, n in enumerate(shape)]
    scale = b.weight("scale", np.abs(normal(*scales)) / 100)
    zero = b.weight("zero", RNG.integers(-3, 4, scales).astype(np.int8))
    value = b.op("DequantizeLinear", codes, scale, zero, axis=axis, block_size=block or None)
    return b.op("Transpose", value) if turn else value


@pytest.mark.parametrize(
    ("axis", "block", "turn"), [(1, 0, False), (0, 0, True), (0, 16, False), (1, 16, True)]
)
def test_scales_per_output_turn_with_the_weight(axis: int, block: int, turn: bool) -> None:
    made = program(lambda b, x: b.op("MatMul", x, _quantized(b, axis, block, turn)))
    lower(NativeLinear(), made)
    weight = the(made).inputs[4]
    assert weight is not None and list(weight.shape or ()) == [ROWS, COLUMNS]
    assert weight.producer() is the(made, "DequantizeLinear")
    assert "Transpose" not in count(made)


def test_half_stored_weights_stay_half() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        half = b.weight("w", normal(COLUMNS, ROWS).astype(np.float16))
        return b.op("MatMul", x, b.op("Cast", half, to=ir.DataType.FLOAT))

    made = program(build)
    lower(NativeLinear(), made)
    stored = the(made, "Cast").inputs[0]
    assert stored is not None and stored.dtype == FLOAT16 and list(stored.shape or ()) == [ROWS, COLUMNS]


def test_products_of_two_activations_and_other_floats_are_left() -> None:
    made = program(lambda b, x: b.op("MatMul", x, b.op("Transpose", x, perm=[0, 2, 1])))
    assert lower(NativeLinear(), made) == []
    assert count(made)["MatMul"] == 1
    b = Builder()
    x = b.input("x", ("n", COLUMNS), FLOAT16)
    b.output(b.op("MatMul", x, b.weight("w", normal(COLUMNS, ROWS).astype(np.float16))), "y")
    assert "the kernels take float32" in reasons(run_pass(NativeLinear(), b.program()))


# Activations and gates


def _silu(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Mul", x, b.op("Sigmoid", x))


def _quick_gelu(b: Builder, x: ir.Value) -> ir.Value:
    return b.op("Mul", b.op("Sigmoid", b.op("Mul", x, b.weight("c", np.float32(1.702)))), x)


ACTIVATIONS: dict[str, Build] = {
    "relu": lambda b, x: b.op("Relu", x),
    "gelu": lambda b, x: b.op("Gelu", x),
    "gelu_tanh": lambda b, x: b.op("Gelu", x, approximate="tanh"),
    "sigmoid": lambda b, x: b.op("Sigmoid", x),
    "tanh": lambda b, x: b.op("Tanh", x),
    "silu": _silu,
    "quick_gelu": _quick_gelu,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_ends_the_layer(name: str) -> None:
    made = program(lambda b, x: ACTIVATIONS[name](b, dense(b, x, bias=True)))
    lower([NativeLinear(), NativeActivation()], made)
    assert count(made) == {"miaotui::Linear": 1, "Neg": 1}
    assert the(made).attributes.get_string("activation") == name


def test_a_layer_that_is_read_without_its_activation_keeps_it_apart() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        y = dense(b, x)
        return b.op("Add", y, b.op("Relu", y))

    assert lower([NativeLinear(), NativeActivation()], program(build)) == [
        "the layer's result is read without the activation too"
    ]


GATE = (NativeLinear(), NativeActivation(), NativeGate())


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_gate_and_up_are_one_gated_layer(swap: bool, bias: bool) -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        parts = [_silu(b, dense(b, x, bias=bias)), dense(b, x, bias=bias)]
        return b.op("Mul", *(parts[::-1] if swap else parts))

    made = program(build)
    lower(GATE, made)
    assert count(made) == {"miaotui::Linear": 1, "Neg": 1}
    assert the(made).attributes.get_int("gated") == 1


def _packed(b: Builder, x: ir.Value, weight: ir.Value, first: int = 0) -> ir.Value:
    halves = b.ops("Split", b.op("MatMul", x, weight), outputs=2, axis=-1, num_outputs=2)
    return b.op("Mul", halves[1 - first], _silu(b, halves[first]))


@pytest.mark.parametrize("first", [0, 1])
def test_the_halves_of_a_packed_weight_are_one_gated_layer(first: int) -> None:
    made = program(lambda b, x: _packed(b, x, b.weight("w", normal(COLUMNS, 2 * ROWS)), first))
    lower(GATE, made)
    assert count(made) == {"miaotui::Linear": 1, "Neg": 1}


def test_a_packed_weight_of_blocks_is_cut_by_rows() -> None:
    made = program(lambda b, x: _packed(b, x, b.op("Transpose", b.weight("w", normal(2 * ROWS, COLUMNS)))))
    block_weights(made, lambda name, w: quantized(w, bits=4, offset=True) if name == "w" else None)
    lower(GATE, made)
    weights = [blocked_weight(the(made).inputs[i]) for i in (4, 6)]
    assert [w.shape for w in weights if w is not None] == [(ROWS, COLUMNS)] * 2


def test_factors_of_other_inputs_are_no_gate() -> None:
    made = program(lambda b, x: b.op("Mul", b.op("Relu", dense(b, x)), dense(b, b.op("Neg", x))))
    assert lower(GATE, made) == ["gate and up read different activations"]


# Joins


def test_three_layers_of_one_input_are_one() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        q, k, v = (dense(b, x, rows, bias=rows == ROWS) for rows in (ROWS, 16, 16))
        return b.op("Concat", q, k, v, axis=-1)

    made = program(build)
    lower([NativeLinear(), NativeJoin()], made)
    assert count(made) == {"miaotui::Linear": 1, "Split": 1, "Concat": 1, "Neg": 1}


def test_more_than_three_layers_are_joined_evenly() -> None:
    made = program(lambda b, x: b.op("Sum", *(dense(b, x) for _ in range(4))))
    lower([NativeLinear(), NativeJoin()], made)
    assert [len(n.outputs) for n in made.main.graph if n.op_type == "Split"] == [2, 2]


def test_integers_and_floats_are_joined_among_themselves() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        return b.op("Sum", dense(b, x), b.op("MatMul", x, _quantized(b, 1)), dense(b, x))

    made = program(build)
    lower([NativeLinear(), NativeJoin()], made)
    assert count(made)["miaotui::Linear"] == 2


def test_outputs_of_the_model_stay_apart() -> None:
    b = Builder()
    x = b.input("x", ("n", COLUMNS))
    for name in "yz":
        b.output(dense(b, x), name)
    assert lower([NativeLinear(), NativeJoin()], b.program()) == ["its result is an output of the model"] * 2


# Norms and residuals


def _norm(b: Builder, x: ir.Value, kind: str, bias: bool = False) -> ir.Value:
    extra = [b.weight("offset", normal(COLUMNS))] if bias else []
    return b.op(kind, x, b.weight("gain", normal(COLUMNS)), *extra, epsilon=1e-3, axis=-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["RMSNormalization", "LayerNormalization"])
def test_a_norm_begins_every_layer_that_reads_it(kind: str, bias: bool) -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        normed = _norm(b, x, kind, bias and kind == "LayerNormalization")
        return b.op("Sub", b.op("Relu", dense(b, normed)), dense(b, normed))

    made = program(build)
    lower([NativeLinear(), NativeNorm()], made)
    assert kind not in count(made)
    norms = {n.attributes.get_string("norm") for n in made.main.graph if n.op_type == "Linear"}
    assert norms == {"rms" if kind == "RMSNormalization" else "layer"}


def test_a_norm_that_others_read_stays() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        normed = _norm(b, x, "RMSNormalization")
        return b.op("Add", normed, dense(b, normed, COLUMNS))

    made = program(build)
    assert lower([NativeLinear(), NativeNorm()], made) == ["its result is read by others than linear layers"]
    assert lower([NativeResidual(), NativeNorm()], made) == ["its result is the residual of a layer"]


def test_a_residual_is_added_by_the_layer() -> None:
    made = program(lambda b, x: b.op("Add", x, b.op("Relu", dense(b, x, COLUMNS))))
    lower([NativeLinear(), NativeActivation(), NativeResidual()], made)
    assert count(made) == {"miaotui::Linear": 1, "Neg": 1}


def test_layers_side_by_side_are_a_chain() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        return b.op("Add", b.op("Add", dense(b, x, COLUMNS), dense(b, x, COLUMNS)), x)

    made = program(build)
    lower([NativeLinear(), NativeResidual()], made)
    assert count(made) == {"miaotui::Linear": 2, "Neg": 1}


def test_rows_in_one_axis_take_their_residual_too() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        rows = b.op("Reshape", x, b.weight("flat", np.array([-1, COLUMNS])))
        y = b.op("Reshape", dense(b, rows, COLUMNS, bias=True), b.weight("cut", np.array([2, -1, COLUMNS])))
        return b.op("Add", y, x)

    made = program(build, (2, 3, COLUMNS))
    lower([NativeLinear(), NativeResidual()], made)
    assert "Add" not in count(made)


def test_addends_of_other_shapes_are_left() -> None:
    made = program(lambda b, x: b.op("Add", dense(b, x), b.op("ReduceSum", x, b.weight("a", np.array([-1])))))
    declined = lower([NativeLinear(), NativeResidual()], made)
    assert declined == ["the addends are not known to have the same shape"]


# Rows and widths


def test_rows_behind_each_other_are_a_slice() -> None:
    def build(b: Builder, x: ir.Value) -> ir.Value:
        turned = b.op("Transpose", x, perm=[2, 0, 1])
        one = b.op("GatherND", turned, b.weight("last", np.array([[-1]])))
        two = b.op("Gather", x, b.weight("two", np.array([4, 5])), axis=2)
        three = b.op("Gather", x, b.weight("three", np.array(1)), axis=-1)
        return b.op("Sum", *(b.op("ReduceSum", v, keepdims=0) for v in (one, two, three)))

    made = program(build)
    lower(NativeRows(), made)
    assert count(made)["Slice"] == 3 and {"Gather", "GatherND"}.isdisjoint(count(made))


def test_other_rows_are_looked_up() -> None:
    made = program(lambda b, x: b.op("Gather", x, b.weight("odd", np.array([1, 3])), axis=2))
    assert lower(NativeRows(), made) == ["its indices do not follow each other"]


def _table(values: np.ndarray[Any, Any]) -> Program:
    """Look-ups in the table that is the output layer's weight too."""
    b = Builder()
    table, ids = b.weight("table", values), b.input("ids", ("batch", "tokens"), INT64)
    x = b.op("Gather", table, ids)
    b.output(b.op("MatMul", b.op("Relu", x), b.op("Transpose", table)), "y")
    made = b.program()
    run_pass(NativeLinear(), made)
    return made


@pytest.mark.parametrize("dtype", [ir.DataType.BFLOAT16, FLOAT16])
def test_what_was_stored_in_16_bits_is_kept_so_and_shared_with_its_table(dtype: ir.DataType) -> None:
    made = _table(normal(80, COLUMNS).astype(dtype.numpy()).astype(np.float32))
    feed: Arrays = {"ids": RNG.integers(0, 80, (2, 3))}
    wanted = evaluate(made.main, feed)
    assert run_pass(NativeWeights(), made).changed == 1
    assert_same(wanted, evaluate(made.main, feed), 0)
    assert [v.dtype for v in made.main.graph.initializers.values()] == [dtype]
    assert the(made, "Gather").inputs[0] is the(made).inputs[4]


def test_float32_that_needs_its_bits_keeps_them_unless_told() -> None:
    made = _table(normal(80, COLUMNS))
    assert run_pass(NativeWeights(), made).changed == 0
    assert run_pass(NativeWeights("fp16"), made).changed == 1
    made = _table(normal(80, COLUMNS) * 1e6)
    assert "where float16 ends" in reasons(run_pass(NativeWeights("fp16"), made))
    with pytest.raises(OptionError, match="one of auto, fp32, fp16, bf16"):
        NativeWeights("int8")


def test_every_layer_is_of_our_own_domain() -> None:
    made = program(lambda b, x: dense(b, x))
    lower(NativeLinear(), made)
    assert the(made).domain == MIAOTUI
    assert made.main.opset_imports[MIAOTUI] == 1


# Whole layers


VIEWS = {"Split", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice"}


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("kind", [{}, {"bits": 4, "offset": True}], ids=["float", "blocks"])
def test_a_layer_of_a_llama_is_five_kernels(layers: int, kind: dict[str, Any]) -> None:
    written = Layers(layers=layers, norms=True, inner=128)
    made = written.program()
    if kind:
        block_weights(made, lambda name, w: quantized(w, **kind))
    for step in (*LOWER_NATIVE, *CLEANUP):
        step.run(made, PassContext())
    verify(made)
    graph = made.entries["decode"].graph
    weights = {node for layer in map(Layer.of, graph) if layer for w, _ in layer.parts for node in _chain(w)}
    found = Counter(node.op_type for node in graph if node.op_type not in VIEWS and node not in weights)
    assert found["FusedAttention"] == layers
    assert found["Linear"] == 4 * layers + 1
    assert {"MatMul", "Add", "RMSNormalization", "Sigmoid", "RotaryEmbedding"} & set(found) <= {"Add"}
    # what is left is counted once: embedding, positions and their angles, the chosen rows and the next tokens
    assert sum(found.values()) - 5 * layers - 1 <= 12
    gated = [node for node in graph if node.attributes.get_int("gated", 0)]
    joined = [node for node in graph if node.op_type == "Linear" and len(node.inputs) == 9]
    assert len(gated) == len(joined) == layers


def _chain(weight: ir.Value) -> list[ir.Node]:
    """The nodes that compute a weight."""
    node = weight.producer()
    return [] if node is None else [node, *(n for v in node.inputs if v is not None for n in _chain(v))]


def test_half_precision_is_one_of_weights_and_cache_not_of_activations() -> None:
    steps = pipeline(CompileOptions(backend="native", precision="fp16"))
    names = [step.name for step in steps]
    assert "convert-fp16" not in names
    assert [step for step in steps if step.name == "native-weights"][-1] == NativeWeights("fp16")
    assert names.index("native-residual") < names.index("native-weights") < names.index("native-cache")
    assert "native-linear" in [step.name for step in pipeline(CompileOptions(backend="native", opt=0))]
