"""fuse-qkv and fuse-gate-up: several projections of one input as one product, equal in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import Target
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.fusion import FuseGateUp, FuseQkv
from support.rewriting import Arrays, check, operators, reasons, run_pass

RANDOM = np.random.default_rng(0)
QKV, GATE_UP = FuseQkv(on=("cpu",)), FuseGateUp(on=("cpu",))
HEADS, SIZE = 4, 8
HIDDEN = HEADS * SIZE


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return (RANDOM.standard_normal(shape) * 0.2).astype(np.float32)


def project(
    b: Builder, x: ir.Value, name: str, width: int, bias: bool = True, weight: ir.Value | None = None
) -> ir.Value:
    product = b.op(
        "MatMul", x, weight or b.weight(f"w_{name}", normal(HIDDEN, width)), name=f"product_{name}"
    )
    return b.op("Add", product, b.weight(f"b_{name}", normal(width)), name=name) if bias else product


def attend(b: Builder, q: ir.Value, k: ir.Value, v: ir.Value, kv_heads: int) -> ir.Value:
    def split(x: ir.Value, heads: int) -> ir.Value:
        shape = b.weight(f"split_{x.name}", np.array([0, 0, heads, SIZE]))
        return b.op("Transpose", b.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    return b.op("Attention", split(q, HEADS), split(k, kv_heads), split(v, kv_heads))


def self_attention(kv_heads: int = HEADS, biases: str = "qkv") -> Program:
    b = Builder()
    x = b.input("x", ("batch", "seq", HIDDEN))
    widths = {"q": HIDDEN, "k": kv_heads * SIZE, "v": kv_heads * SIZE}
    q, k, v = (project(b, x, name, width, name in biases) for name, width in widths.items())
    b.output(attend(b, q, k, v, kv_heads), "y")
    return b.program()


FEEDS: list[Arrays] = [{"x": normal(*shape, HIDDEN)} for shape in ((1, 1), (1, 7), (3, 5))]


@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("biases", ["qkv", "", "qv"])
def test_query_key_value_become_one_product(kv_heads: int, biases: str) -> None:
    program = self_attention(kv_heads, biases)
    (result,) = check(QKV, program, FEEDS)
    assert result.changed == 1
    counts = operators(program)
    assert (counts["MatMul"], counts["Split"], counts["Add"]) == (1, 1, bool(biases))


def test_projections_keep_their_names_and_sources() -> None:
    program = self_attention()
    run_pass(QKV, program)
    split = next(node for node in program.main.graph if node.op_type == "Split")
    assert [value.name for value in split.outputs] == ["q", "k", "v"]


def test_weights_are_joined_only_when_read() -> None:
    program = self_attention()
    read: list[str] = []

    def watched(name: str, tensor: ir.TensorProtocol) -> ir.LazyTensor:
        def load() -> ir.TensorProtocol:
            read.append(name)
            return tensor

        return ir.LazyTensor(load, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name)

    for name, value in program.main.graph.initializers.items():
        if str(name).startswith("w_") and value.const_value is not None:
            value.const_value = watched(str(name), value.const_value)
    QKV.run(program, PassContext())
    assert read == []
    joined = program.main.graph.initializers["joined_weight"].const_value
    assert joined is not None and joined.numpy().shape == (HIDDEN, 3 * HIDDEN)
    assert read == ["w_q", "w_k", "w_v"]


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_projections(transposed: int) -> None:
    b = Builder()
    x = b.input("x", ("rows", HIDDEN))
    parts = []
    for name in "qkv":
        weight = b.weight(f"w_{name}", normal(HIDDEN, HIDDEN))
        y = b.op("Gemm", x, weight, b.weight(f"b_{name}", normal(HIDDEN)), transB=transposed, name=name)
        parts.append(b.op("Reshape", y, b.weight(f"s_{name}", np.array([1, -1, HIDDEN])), name=f"{name}3"))
    b.output(attend(b, *parts, HEADS), "y")
    program = b.program()
    check(QKV, program, [{"x": normal(5, HIDDEN)}])
    assert operators(program)["Gemm"] == 1


def test_cross_attention_joins_key_and_value() -> None:
    b = Builder()
    x, memory = b.input("x", ("batch", "seq", HIDDEN)), b.input("memory", ("batch", "source", HIDDEN))
    q, k, v = project(b, x, "q", HIDDEN), project(b, memory, "k", HIDDEN), project(b, memory, "v", HIDDEN)
    b.output(attend(b, q, k, v, HEADS), "y")
    program = b.program()
    check(QKV, program, [{"x": normal(2, 3, HIDDEN), "memory": normal(2, 7, HIDDEN)}])
    assert operators(program)["MatMul"] == 2


def test_cpu_keeps_projections_apart_and_says_why() -> None:
    result = run_pass(FuseQkv(), self_attention(), PassContext(Target("cpu")))
    assert "splitting one wide product" in reasons(result)
    assert run_pass(FuseQkv(), self_attention(), PassContext(Target("cuda"))).changed == 1


def declined(change: str) -> str:
    b = Builder()
    x = b.input("x", ("batch", "seq", HIDDEN))
    other = b.op("Neg", x) if change == "inputs" else x
    shared = b.weight("w_k", normal(HIDDEN, HIDDEN))
    weight = {"varies": lambda: b.input("w_in", (HIDDEN, HIDDEN)), "shared": lambda: shared}.get(change)
    q, k = project(b, x, "q", HIDDEN), project(b, x, "k", HIDDEN, weight=shared)
    if change == "quantized":
        raw = b.weight("raw", RANDOM.integers(-9, 9, (HIDDEN, HIDDEN)).astype(np.int8))
        v = project(
            b, x, "v", HIDDEN, weight=b.op("DequantizeLinear", raw, b.weight("scale", np.float32(0.1)))
        )
    else:
        v = project(b, other, "v", HIDDEN, weight=weight() if weight else None)
    b.output(attend(b, q, k, v, HEADS), "y")
    if change == "output":
        producer = v.producer()
        assert producer is not None and producer.inputs[0] is not None
        b.output(producer.inputs[0], "product")
    return reasons(run_pass(QKV, b.program()))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("inputs", "key and value read different inputs"),
        ("varies", "is not constant"),
        ("shared", "is used elsewhere too"),
        ("quantized", "is quantized"),
        ("output", "read without its bias too"),
    ],
)
def test_declines(change: str, reason: str) -> None:
    assert reason in declined(change)


def gated(activation: str, bias: bool = False) -> Program:
    b = Builder()
    x = b.input("x", ("batch", "seq", HIDDEN))
    gate, up = project(b, x, "gate", 24, bias), project(b, x, "up", 24, bias)
    active = b.op("Mul", gate, b.op("Sigmoid", gate)) if activation == "SiLU" else b.op(activation, gate)
    b.output(b.op("Mul", active, up), "y")
    return b.program()


@pytest.mark.parametrize("activation", ["SiLU", "Gelu", "Relu"])
@pytest.mark.parametrize("bias", [False, True])
def test_gate_and_up_become_one_product(activation: str, bias: bool) -> None:
    program = gated(activation, bias)
    check(GATE_UP, program, FEEDS)
    assert operators(program)["MatMul"] == 1


def test_gate_and_up_of_different_inputs_stay_apart() -> None:
    b = Builder()
    x, z = b.input("x", ("batch", "seq", HIDDEN)), b.input("z", ("batch", "seq", HIDDEN))
    b.output(b.op("Mul", b.op("Gelu", project(b, x, "g", 24)), project(b, z, "u", 24)), "y")
    assert "different inputs" in reasons(run_pass(GATE_UP, b.program()))


def test_options_are_the_passes_fields() -> None:
    assert FuseQkv().with_options("on=cpu+cuda") == replace(FuseQkv(), on=("cpu", "cuda"))
