"""block-kernels: blocked weights in ONNX Runtime's kernels, value for value what the IR says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime.placement import fallbacks
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.constants import constant_tensor
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.quantized import BlockedWeight, blocked_weight
from miaotui.compiler.ir.rewrite import Rewriter
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.compiler.weights import WeightStore
from miaotui.passes.base import PassContext
from miaotui.passes.cleanup import CLEANUP
from miaotui.passes.fusion import FUSION
from miaotui.passes.lowering.onnxruntime import LOWER_CPU, LOWER_CUDA
from miaotui.passes.lowering.onnxruntime.blocked import UseBlockKernels
from miaotui.passes.lowering.onnxruntime.gqa import UseGroupQueryAttention
from miaotui.passes.lowering.onnxruntime.join import JoinBlocked
from miaotui.passes.precision.fp16 import ConvertBf16, ConvertFp16
from miaotui.passes.raising import RAISING
from support.decode_graphs import Layers, block_weights, ort_decode, quantized
from support.rewriting import assert_same, ort_run, reasons, run_pass

RNG = np.random.default_rng(3)
EXACT = UseBlockKernels(accuracy=1)  # float32 products: what is left to compare is the repacking

KINDS = {
    "int4": {"bits": 4, "signed": True},
    "uint4 zero": {"bits": 4, "zero": True},
    "int4 zero": {"bits": 4, "zero": True, "signed": True},
    "uint4 offset": {"bits": 4, "offset": True},
    "int4 offset": {"bits": 4, "offset": True, "signed": True},
    "int8": {"bits": 8, "signed": True},
    "uint8 zero": {"bits": 8, "zero": True},
    "int8 zero": {"bits": 8, "zero": True, "signed": True},
    "uint8 offset": {"bits": 8, "offset": True},
}


def product(
    form: str = "matmul", bias: bool = False, rows: int = 6, columns: int = 96
) -> tuple[Program, Any]:
    b = Builder()
    x = b.input("x", ("rows", columns) if form.startswith("gemm") else ("batch", "tokens", columns))
    w = b.weight("w", RNG.standard_normal((rows, columns)))
    parts = [b.weight("bias", RNG.standard_normal(rows))] if bias else []
    if form == "gemm transposed":
        y = b.op("Gemm", x, w, *parts, transB=1)
    elif form == "gemm":
        y = b.op("Gemm", x, b.op("Transpose", w, perm=[1, 0]), *parts)
    else:
        y = b.op("MatMul", x, b.op("Transpose", w, perm=[1, 0]))
        y = b.op("Add", y, *parts) if bias else y
    b.output(b.op("Neg", y), "y")
    program = b.program()
    shapes = [(5, columns)] if form.startswith("gemm") else [(1, 1, columns), (2, 3, columns)]
    return program, [{"x": RNG.standard_normal(s).astype(np.float32)} for s in shapes]


def operators(program: Program, entry: str = "main") -> Counter[str]:
    return Counter(n.op_type for n in program.entries[entry].graph)


@pytest.mark.parametrize("block", [16, 32])
@pytest.mark.parametrize("form", ["matmul", "gemm", "gemm transposed"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_products_are_the_same(kind: str, bias: bool, form: str, block: int) -> None:
    program, feeds = product(form, bias)
    block_weights(program, lambda name, w: quantized(w, block=block, **KINDS[kind]) if name == "w" else None)
    wanted = [evaluate(program.main, feed) for feed in feeds]
    result = run_pass(EXACT, program)
    assert result.changed == 1, reasons(result)
    found = operators(program)
    assert found["MatMulNBits"] == 1
    assert "DequantizeLinear" not in found
    for feed, expected in zip(feeds, wanted, strict=True):
        assert_same(expected, evaluate(program.main, feed), 1e-5)
        assert_same(expected, ort_run(program, feed), 1e-5)


@pytest.mark.parametrize("bits", [5, 6])
def test_fewer_bits_in_bytes_stay_near_the_kernels_zero(bits: int) -> None:
    codes = RNG.integers(0, 1 << bits, (6, 96)).astype(np.uint8)
    scale, offset = RNG.random((2, 6, 3)).astype(np.float32)
    weight = BlockedWeight(ir.tensor(codes), ir.tensor(scale), None, ir.tensor(-offset), 32)
    program, feeds = product()
    block_weights(program, lambda name, w: weight)
    wanted = evaluate(program.main, feeds[1])
    UseBlockKernels().run(program, PassContext())
    assert_same(wanted, ort_run(program, feeds[1]), 0.02)  # activations of 8 bits
    stored = next(v for v in program.main.graph.initializers.values() if v.name == "w").const_value
    assert stored is not None
    half = 1 << (bits - 1)
    np.testing.assert_array_equal(stored.numpy().reshape(6, 96), codes + (128 - half))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_looked_up_without_the_whole_table(kind: str) -> None:
    b = Builder()
    ids = b.input("ids", ("batch", "tokens"), INT64)
    b.output(b.op("Gather", b.weight("table", RNG.standard_normal((20, 64))), ids), "y")
    program = b.program()
    block_weights(program, lambda name, w: quantized(w, **KINDS[kind]) if name == "table" else None)
    feed = {"ids": RNG.integers(0, 20, (2, 5))}
    wanted = evaluate(program.main, feed)
    assert run_pass(UseBlockKernels(), program).changed == 1
    assert operators(program)["GatherBlockQuantized"] == 1
    assert_same(wanted, evaluate(program.main, feed), 1e-6)
    assert_same(wanted, ort_run(program, feed), 1e-6)


@pytest.mark.parametrize("kind", ["int4", "uint8 zero", "uint4 offset"])
def test_a_whole_pipeline_keeps_every_block(kind: str, tmp_path: Any) -> None:
    layers = Layers(hidden=64, inner=96)
    program = layers.program()
    program.entries["main"] = program.entries["decode"].clone()
    weights: dict[str, BlockedWeight] = {}

    def make(name: str, array: Any) -> BlockedWeight | None:
        if array.shape[1] % 32:
            return None
        return weights.setdefault(name, quantized(array, **KINDS[kind]))

    block_weights(program, make)
    feed = layers.feeds([3, 0], 4)
    wanted = evaluate(program.entries["decode"], feed)
    context = PassContext()
    for step in (*CLEANUP, *RAISING, *CLEANUP, *FUSION):
        step.run(program, context)
    read = {id(w.data) for n in program.main.graph if (w := blocked_weight(n.outputs[0])) is not None}
    assert read == {id(w.data) for w in weights.values()}
    for step in (JoinBlocked(), EXACT, *LOWER_CPU, *CLEANUP):
        step.run(program, context)
    found = operators(program, "decode")
    assert (found["MatMulNBits"], found["GatherBlockQuantized"]) == (4 * layers.layers + 1, 1)
    assert found["Split"] == layers.layers  # gate and up; query, key and value stay one
    assert np.abs(ort_decode(program, feed)["logits"] - wanted["logits"]).max() < 2e-5

    entries = program.entries.values()
    tensors = [
        t for m in entries for v in m.graph.initializers.values() if (t := constant_tensor(v)) is not None
    ]
    codes = [t for t in tensors if t.dtype == ir.DataType.UINT8]
    assert len({id(t) for t in codes}) == len(codes) / 2  # both entries hold the same tensors
    with WeightStore(tmp_path / "weights.bin") as store:
        tied = {store.add(t) for t in codes if t.shape[0] == layers.vocabulary and t.nbytes > 1000}
    assert len(tied) == 1  # as a table and as a matrix


@pytest.mark.parametrize(
    ("block", "why"), [(8, "blocks of 8 columns"), (48, "blocks of 48 columns"), (96, "blocks of 96 columns")]
)
def test_declines_blocks_the_kernel_has_not(block: int, why: str) -> None:
    program, _ = product()
    block_weights(program, lambda name, w: quantized(w, block=block))
    assert why in reasons(run_pass(UseBlockKernels(), program))


@pytest.mark.parametrize("kind", ["int4", "uint4 zero", "uint4 offset", "int8"])
def test_cuda_multiplies_activations_as_they_are(kind: str) -> None:
    layers, cuda = Layers(hidden=64, inner=96), PassContext(Target("cuda"))
    program = layers.program()
    block_weights(program, lambda name, w: None if w.shape[1] % 32 else quantized(w, **KINDS[kind]))
    feed = layers.feeds([3, 0], 4)
    wanted = evaluate(program.entries["decode"], feed)
    for step in LOWER_CUDA:
        step.run(program, cuda)
    found = operators(program, "decode")
    assert found["MatMulNBits"] and found["GatherBlockQuantized"] == 1 and not found["DequantizeLinear"]
    products = [n for n in program.entries["decode"].graph if n.op_type == "MatMulNBits"]
    assert {n.attributes.get_int("accuracy_level") for n in products} == {0}
    assert fallbacks(program, cuda.target) == []
    assert_same(wanted, ort_run(Program({"main": program.entries["decode"]}), feed), 1e-4)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_cuda_has_kernels_for_16_bits(dtype: Any) -> None:
    program, feeds = product(bias=True)
    block_weights(program, lambda name, w: quantized(w, signed=True) if name == "w" else None)
    cuda = PassContext(Target("cuda"))
    run_pass(ConvertFp16() if dtype is np.float16 else ConvertBf16(), program, cuda)
    wanted = evaluate(program.main, feeds[1])
    assert run_pass(UseBlockKernels(), program, cuda).changed == 1
    assert operators(program)["Add"] == 1, "not all kernels take a bias"
    (node,) = (n for n in program.main.graph if n.op_type == "MatMulNBits")
    assert node.inputs[2] is not None and node.inputs[2].dtype == ir.DataType.from_numpy(np.dtype(dtype))
    assert fallbacks(program, cuda.target) == []
    assert_same(wanted, evaluate(program.main, feeds[1]), 0.02)


def test_cuda_has_no_wider_blocks_than_128() -> None:
    program, _ = product(columns=512)
    block_weights(program, lambda name, w: quantized(w, block=256))
    assert "wider than the 128" in reasons(run_pass(UseBlockKernels(), program, PassContext(Target("cuda"))))


def test_leaves_other_weights_alone() -> None:
    program, _ = product()
    result = run_pass(UseBlockKernels(), program)
    assert not result.changed
    assert not result.declined


def test_activations_that_several_products_read_are_summed_once() -> None:
    b = Builder()
    x = b.input("x", ("batch", "tokens", 64))
    turned = [
        b.op("Transpose", b.weight(f"w{i}", RNG.standard_normal((6, 64))), perm=[1, 0]) for i in range(3)
    ]
    b.output(b.op("Concat", *(b.op("MatMul", x, w) for w in turned), axis=-1), "y")
    program = b.program()
    block_weights(program, lambda name, w: quantized(w, offset=True))
    run_pass(UseBlockKernels(), program)
    assert operators(program)["ReduceSum"] == 1


def test_the_output_layer_takes_its_activations_in_two_parts() -> None:
    layers = Layers(hidden=64, inner=96)
    errors = []
    for two in (False, True):
        program = layers.program()
        block_weights(program, lambda name, w: quantized(w, bits=8, signed=True))
        feed = layers.feeds([3, 0], 4, selected=2)
        wanted = evaluate(program.entries["decode"], feed)["logits"]
        for node in tuple(program.entries["decode"].graph):
            inner = node.op_type == "DequantizeLinear" and "embed" not in str(node.inputs[0].name)  # type: ignore[union-attr]
            if inner:  # the output layer's rounding alone
                weight = blocked_weight(node.outputs[0])
                assert weight is not None
                Rewriter(node).replace(node.outputs[0], Rewriter(node).const(weight.numpy(), "dense"))
        for step in (UseBlockKernels(two_parts=two), UseGroupQueryAttention()):
            step.run(program, PassContext())
        assert operators(program, "decode")["MatMulNBits"] == 1
        errors.append(np.abs(ort_decode(program, feed)["logits"] - wanted).max())
        none = layers.feeds([3, 0], 4, selected=0)
        assert ort_decode(program, none)["logits"].shape == (2, 0, layers.vocabulary)
    assert errors[0] > 1e-3
    assert errors[1] < errors[0] / 30


def side_by_side(*weights: Any, output: bool = False) -> tuple[Program, Any]:
    b = Builder()
    x = b.input("x", ("batch", "tokens", 64))
    turned = [b.op("Transpose", b.weight(f"w{i}", w), perm=[1, 0]) for i, w in enumerate(weights)]
    products = [b.op("MatMul", x, w, name=f"p{i}") for i, w in enumerate(turned)]
    b.output(b.op("Concat", *(b.op("Neg", p) for p in products), axis=-1), "y")
    if output:
        b.output(products[0])
    return b.program(), {"x": RNG.standard_normal((2, 3, 64)).astype(np.float32)}


@pytest.mark.parametrize("kind", KINDS)
def test_products_of_one_activation_are_joined(kind: str) -> None:
    program, feed = side_by_side(*(RNG.standard_normal((n, 64)) for n in (6, 4, 2)))
    block_weights(program, lambda name, w: quantized(w, **KINDS[kind]))
    wanted = evaluate(program.main, feed)
    result = run_pass(JoinBlocked(), program)
    assert "6 + 4 + 2 rows" in result.hits[0].text
    assert_same(wanted, evaluate(program.main, feed), 1e-6)
    run_pass(EXACT, program)
    assert operators(program)["MatMulNBits"] == 1
    assert_same(wanted, ort_run(program, feed), 1e-5)


def test_declines_to_join_what_differs_or_is_read_outside() -> None:
    program, _ = side_by_side(*(RNG.standard_normal((n, 64)) for n in (6, 4)))
    block_weights(program, lambda name, w: quantized(w, bits=8 if name == "w0" else 4))
    assert "differ" in reasons(run_pass(JoinBlocked(), program))
    program, _ = side_by_side(*(RNG.standard_normal((n, 64)) for n in (6, 4)), output=True)
    block_weights(program, lambda name, w: quantized(w))
    assert "output of the model" in reasons(run_pass(JoinBlocked(), program))
