"""quantize-weights: which weights are rounded, how well, and that nothing is held in memory for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.constants import constant_tensor
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.quantized import BlockedWeight, blocked_weight
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.lowering.onnxruntime.blocked import UseBlockKernels
from miaotui.passes.lowering.onnxruntime.halves import StoreHalves
from miaotui.passes.pipeline import pipeline
from miaotui.passes.precision.grids import SCHEMES, Rounding, best_grid, spanning
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.weight_uses import weight_uses
from support.decode_graphs import Layers, block_weights, ort_decode, quantized
from support.rewriting import assert_same, ort_run, reasons, run_pass

RNG = np.random.default_rng(5)
SMALL = QuantizeWeights(least=1)


def blocked(program: Program, entry: str = "main") -> dict[str, BlockedWeight]:
    """Blocked weights by the name of their data."""
    found = {}
    for node in program.entries[entry].graph:
        if (weight := blocked_weight(node.outputs[0])) is not None:
            while node.op_type != "DequantizeLinear":  # an offset is added behind it
                assert node.inputs[0] is not None
                node = node.inputs[0].producer()
            found[str(node.inputs[0].name).removesuffix(".data")] = weight
    return found


def test_16_bits_are_float16_numbers_in_every_form_and_shared() -> None:
    program = forms(columns=60)  # no multiple of any block
    inputs = {"ids": np.arange(30)}
    before = {
        name: v.const_value.numpy() for name, v in program.main.graph.initializers.items() if v.const_value
    }
    result = run_pass(QuantizeWeights(bits=16, output=16, table=16, least=1), program)
    assert {note.node for note in result.hits} == {"table", "turned", "plain", "gemm", "gemm_t", "small"}
    held = program.main.graph.initializers
    assert held.keys() == before.keys()
    for name, array in before.items():
        value = held[name].const_value
        assert value is not None and value.dtype == ir.DataType.FLOAT
        np.testing.assert_array_equal(value.numpy(), array.astype(np.float16).astype(np.float32), strict=True)
    wanted = evaluate(program.main, inputs)
    result = run_pass(StoreHalves(least=1), program)
    assert result.changed == 6 and {v.dtype for v in held.values()} == {ir.DataType.FLOAT16}
    assert all(
        v.const_value is not None and v.const_value.dtype == ir.DataType.FLOAT16 for v in held.values()
    )
    for step in CLEANUP:  # small as they are, they are not made float32 again
        step.run(program, PassContext())
    assert {v.dtype for v in held.values()} == {ir.DataType.FLOAT16}
    assert_same(wanted, ort_run(program, inputs), 1e-6)


def test_products_and_look_ups_may_differ_in_16_bits() -> None:
    program, inputs = forms(), {"ids": np.arange(30)}
    table = program.main.graph.initializers["table"].const_value
    assert table is not None
    run_pass(QuantizeWeights(bits=16, output=16, table=8, least=1), program)
    assert blocked(program).keys() == {"table"}
    stored = StoreHalves(least=1)
    run_pass(stored, program)
    found = program.main.graph.initializers["table.fp16"].const_value
    assert found is not None and found.dtype == ir.DataType.FLOAT16
    np.testing.assert_array_equal(found.numpy(), table.numpy().astype(np.float16))
    logits = evaluate(program.main, inputs)["logits"]
    rows = blocked(program)["table"].numpy()
    np.testing.assert_allclose(logits, rows @ found.numpy().astype(np.float32).T, rtol=1e-4, atol=1e-4)


def test_weights_that_are_float16_by_chance_are_not_stored_apart() -> None:
    program = forms()
    for value in program.main.graph.initializers.values():
        assert value.const_value is not None
        value.const_value = ir.tensor(value.const_value.numpy().round(), name=value.name)
    assert not run_pass(StoreHalves(least=1), program).changed


@pytest.mark.parametrize(("factor", "why"), [(1e6, "float16 ends at 65504"), (1e-8, "float16")])
def test_what_float16_cannot_hold_is_declined(factor: float, why: str) -> None:
    b = Builder()
    x = b.input("x", ("rows", 64))
    b.output(b.op("MatMul", x, b.weight("w", RNG.standard_normal((64, 64)) * factor)), "y")
    program, step = b.program(), QuantizeWeights(bits=16)
    value = program.main.graph.initializers["w"]
    assert value.const_value is not None
    assert step.approximation("w", value.const_value, weight_uses(value), PassContext()) is None
    result = run_pass(step, program)
    assert not result.changed and why in reasons(result)


def forms(columns: int = 64, rows: int = 12) -> Program:
    """Products with matrices as they are and turned, and a table that is the output layer too."""
    b = Builder()
    ids = b.input("ids", ("tokens",), INT64)
    table = b.weight("table", RNG.standard_normal((30, columns)))
    x = b.op("Gather", table, ids)
    parts = [
        b.op("MatMul", x, b.weight("turned", RNG.standard_normal((columns, rows)))),
        b.op(
            "MatMul",
            x,
            b.op("Transpose", b.weight("plain", RNG.standard_normal((rows, columns))), perm=[1, 0]),
        ),
        b.op("Gemm", x, b.weight("gemm", RNG.standard_normal((columns, rows)))),
        b.op("Gemm", x, b.weight("gemm_t", RNG.standard_normal((rows, columns))), transB=1),
    ]
    total = b.op("Relu", b.op("Add", b.op("Add", *parts[:2]), b.op("Add", *parts[2:])))
    b.output(b.op("MatMul", total, b.weight("small", RNG.standard_normal((rows, 5)))), "y")
    b.output(b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0])), "logits")
    return b.program()


@pytest.mark.parametrize("scheme", ["auto", *SCHEMES])
@pytest.mark.parametrize("bits", [4, 8])
def test_rounds_every_form_of_product_and_table(bits: int, scheme: str) -> None:
    program = forms()
    feed = {"ids": np.array([3, 0, 29])}
    weights = {n: v.const_value.numpy() for n, v in program.main.graph.initializers.items() if v.const_value}
    before = evaluate(program.main, feed)
    result = run_pass(QuantizeWeights(bits=bits, scheme=scheme, least=1), program)
    assert result.changed == 5, reasons(result)
    found = blocked(program)
    assert found.keys() == {"table", "turned", "plain", "gemm", "gemm_t"}
    for name, weight in found.items():
        assert weight.bits == (8 if name == "table" else bits)
        whole = {"auto": "symmetric" if weight.bits == 8 else "asymmetric"}.get(scheme, scheme)
        assert (weight.zero_point is None) == (whole != "asymmetric")
        assert (weight.offset is None) == (whole != "offset")
        array = weights[name].T if name in ("turned", "gemm") else weights[name]
        error = np.abs(weight.numpy() - array).max() / np.abs(array).max()
        assert error < {8: 0.006, 4: 0.16}[weight.bits]
    after = evaluate(program.main, feed)
    assert_same(before, after, {8: 0.02, 4: 0.3}[bits])
    run_pass(UseBlockKernels(accuracy=1), program)
    assert_same(after, ort_run(program, feed), 1e-5)


def test_four_bits_keep_eight_in_the_output_layer() -> None:
    program = forms()
    run_pass(QuantizeWeights(bits=4, least=1, keep=("table",)), program)
    assert {w.bits for w in blocked(program).values()} == {4}
    b = Builder()
    ids = b.input("ids", ("batch", "tokens"), INT64)
    x = b.op("Gather", b.weight("table", RNG.standard_normal((40, 64))), ids)
    h = b.op("MatMul", x, b.weight("inner", RNG.standard_normal((64, 64))))
    y = b.op("MatMul", b.op("Relu", h), b.weight("head", RNG.standard_normal((64, 40))))
    capped = b.op("Mul", b.op("Tanh", b.op("Div", y, b.weight("c", 30.0))), b.weight("d", 30.0))
    b.output(capped, "logits")
    program = b.program()
    run_pass(QuantizeWeights(bits=4, least=1), program)
    assert {name: w.bits for name, w in blocked(program).items()} == {"table": 8, "inner": 4, "head": 8}


def test_a_tied_output_layer_of_fewer_bits_is_stored_apart() -> None:
    program = forms()
    feed = {"ids": np.array([3, 0, 29])}
    before = evaluate(program.main, feed)
    run_pass(QuantizeWeights(bits=4, output=4, least=1), program)
    assert sorted(w.bits for n, w in blocked(program).items() if n.startswith("table")) == [4, 8]
    assert_same(before, evaluate(program.main, feed), 0.3)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_searching_beats_the_whole_range(scheme: str) -> None:
    parts = RNG.standard_normal((2000, 32)).astype(np.float32)
    rounding = Rounding(4, 32, scheme)
    errors = [
        float(((g.values(g.codes(parts, rounding)) - parts) ** 2).sum())
        for g in (spanning(parts, rounding), best_grid(parts, None, rounding))
    ]
    assert errors[1] < 0.93 * errors[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_searching_heeds_what_is_important(scheme: str) -> None:
    parts = RNG.standard_normal((500, 32)).astype(np.float32)
    importance = np.exp(2 * RNG.standard_normal((1, 32))).astype(np.float32)
    rounding = Rounding(4, 32, scheme)
    errors = []
    for known in (None, importance):
        grid = best_grid(parts, known, rounding)
        change = grid.values(grid.codes(parts, rounding)) - parts
        errors.append(float((importance * change**2).sum()))
    assert errors[1] < 0.85 * errors[0]


@pytest.mark.parametrize("block", [16, 32, 64, 128])
def test_scales_are_of_16_bits_unless_those_cannot_hold_them(block: int) -> None:
    parts = RNG.standard_normal((64, block)).astype(np.float32)
    for scheme in SCHEMES:
        rounding = Rounding(4, block, scheme)
        for grid in (spanning(parts, rounding), best_grid(parts, None, rounding)):
            for array in (grid.scale, grid.offset):
                np.testing.assert_array_equal(array, array.astype(np.float16).astype(np.float32))
            small = best_grid(parts * 1e-9, None, rounding)
            assert (np.abs(small.scale) > 1e-11).all()
            back = small.values(small.codes(parts * 1e-9, rounding))
            assert np.abs(back - parts * 1e-9).max() < 0.8e-9


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("bits", [4, 8])
def test_constant_blocks_are_exact(bits: int, scheme: str, value: float) -> None:
    parts = np.full((3, 32), value, np.float32)
    rounding = Rounding(bits, 32, scheme)
    for grid in (spanning(parts, rounding), best_grid(parts, None, rounding)):
        back = grid.values(grid.codes(parts, rounding))
        np.testing.assert_allclose(back, parts, rtol=2**-11)  # scales have 16 bits


def test_a_grid_with_offsets_is_found_again() -> None:
    """Weights that lie on GGUF's Q4_1 grid, as they are when such a file was dequantized."""
    codes = RNG.integers(0, 16, (200, 32))
    codes[:, :2] = 0, 15
    scale, offset = (RNG.random((2, 200, 1)) * 0.01 + 0.002).astype(np.float16).astype(np.float32)
    parts = codes.astype(np.float32) * scale - offset
    grid = best_grid(parts, None, Rounding(4, 32, "offset"))
    np.testing.assert_array_equal(grid.codes(parts, Rounding(4, 32, "offset")), codes)
    np.testing.assert_allclose(grid.values(codes.astype(np.float32)), parts, atol=2e-5)


def test_declines_with_reasons() -> None:
    b = Builder()
    x = b.input("x", ("rows", 60))
    b.output(b.op("MatMul", x, b.weight("odd", RNG.standard_normal((60, 8)))), "a")
    both = b.weight("both", RNG.standard_normal((64, 64)))
    h = b.op("MatMul", b.input("z", ("rows", 64)), both)
    b.output(b.op("MatMul", b.op("Relu", h), b.op("Transpose", both, perm=[1, 0])), "b")
    shared = b.weight("shared", RNG.standard_normal((64, 64)))
    b.output(b.op("MatMul", h, shared), "c")
    b.output(b.op("Add", h, b.op("ReduceSum", shared, b.weight("all", np.array([0, 1])), keepdims=0)), "d")
    kept = b.weight("kept", RNG.standard_normal((64, 64)))
    b.output(b.op("MatMul", h, kept), "e")
    program = b.program()
    result = run_pass(QuantizeWeights(least=1, keep=("kept",)), program)
    assert not result.changed
    text = reasons(result)
    assert "60 columns are no multiple of the block of 32" in text
    assert "as it is and transposed" in text
    assert "something else than a product or a look-up" in text
    assert "is to be kept" in text


def test_leaves_small_weights_other_dtypes_and_higher_ranks() -> None:
    b = Builder()
    x = b.input("x", ("batch", "rows", 64))
    y = b.op("MatMul", x, b.weight("experts", RNG.standard_normal((2, 64, 64))))
    b.output(b.op("MatMul", y, b.weight("little", RNG.standard_normal((64, 32)))), "y")
    program = b.program()
    result = run_pass(QuantizeWeights(), program)
    assert not result.changed
    assert not result.declined


def test_leaves_what_the_source_has_quantized() -> None:
    program = forms()
    block_weights(program, lambda name, w: quantized(w, offset=True) if name == "plain" else None)
    before = blocked(program)["plain"]
    run_pass(SMALL, program)
    assert blocked(program)["plain"].data is before.data


def test_entries_share_what_is_rounded_and_nothing_is_read_before_it_is_written() -> None:
    layers = Layers(hidden=64, inner=96)
    program = layers.program()
    reads: list[str] = []

    def counted(name: str, array: Any) -> ir.LazyTensor:
        def read() -> ir.Tensor:
            reads.append(name)
            return ir.Tensor(array)

        return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=name)

    graph = program.entries["decode"].graph
    for name, value in graph.initializers.items():
        if value.const_value is not None and len(value.const_value.shape) == 2:
            value.const_value = counted(name, value.const_value.numpy())
    program.entries["main"] = program.entries["decode"].clone()
    feed = layers.feeds([2, 0], 3)
    for step in (QuantizeWeights(bits=4, least=1), UseBlockKernels(accuracy=1)):
        wanted = evaluate(program.entries["decode"], feed)["logits"]
        reads.clear()
        step.run(program, PassContext())
        assert reads == []
    first, second = (
        [t for v in m.graph.initializers.values() if (t := constant_tensor(v)) is not None and t.dtype == 2]
        for m in program.entries.values()
    )
    assert {id(t) for t in first} == {id(t) for t in second}
    for tensor in first:
        tensor.numpy()
    assert max(reads.count(n) for n in set(reads)) == 2  # the tied table twice: as rows and as a matrix
    for step in pipeline(CompileOptions(precision="int4")):
        step.run(program, PassContext())
    np.testing.assert_allclose(ort_decode(program, feed)["logits"], wanted, atol=2e-5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_precision_turns_it_on_and_options_reach_it(precision: Any) -> None:
    names = [step.name for step in pipeline(CompileOptions(precision=precision))]
    assert names.count("quantize-weights") == 1
    assert names.index("quantize-weights") < names.index("block-kernels")
    assert "quantize-weights" not in [step.name for step in pipeline(CompileOptions())]
    spec = "quantize-weights{bits=4,block=64,keep=head+embed}"
    (step,) = [s for s in pipeline(CompileOptions(enable=(spec,))) if s.name == "quantize-weights"]
    assert step == QuantizeWeights(bits=4, block=64, keep=("head", "embed"))


@pytest.mark.parametrize("options", ["bits=3", "output=2", "block=24", "scheme=odd"])
def test_refuses_unknown_options(options: str) -> None:
    with pytest.raises(OptionError):
        QuantizeWeights().with_options(options)


def test_cuda_computes_in_half_with_small_weights_and_tvm_refuses() -> None:
    for precision in ("int8", "int4"):
        options = CompileOptions(target=Target("cuda"), backend="ort", precision=precision)  # type: ignore[arg-type]
        names = [step.name for step in pipeline(options)]
        order = ("quantize-weights", "convert-fp16", "join-blocked", "block-kernels")
        assert [name for name in names if name in order] == list(order)
    with pytest.raises(OptionError, match="int8 weights are for CPUs"):
        CompileOptions(target=Target("cuda"), backend="tvm", precision="int8")
