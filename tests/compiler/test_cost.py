"""Operations and bytes against counts made by hand."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler import dialect
from miaotui.compiler.cost import CATALOGUE, Device, concrete_model, device, program_cost
from miaotui.compiler.errors import InputError, OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.program import Program

HIDDEN, HEADS, INNER = 384, 12, 1536


def bert_layer() -> Program:
    """Post-norm encoder layer, [batch, sequence, 384]."""
    b = Builder()
    x = b.input("x", ("batch", "sequence", HIDDEN))

    def linear(v: ir.Value, name: str, width: int, to: int) -> ir.Value:
        product = b.op("MatMul", v, b.weight(f"{name}.weight", np.zeros((width, to))), name=name)
        return b.op("Add", product, b.weight(f"{name}.bias", np.zeros(to)))

    def norm(v: ir.Value, name: str) -> ir.Value:
        scale, shift = (b.weight(f"{name}.{p}", np.ones(HIDDEN)) for p in ("weight", "bias"))
        return b.op("LayerNormalization", v, scale, shift, name=name)

    q, k, v = (linear(x, name, HIDDEN, HIDDEN) for name in "qkv")
    y = b.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS, name="attention")
    h = norm(b.op("Add", linear(y, "out", HIDDEN, HIDDEN), x), "norm1")
    inner = b.op("Gelu", linear(h, "up", HIDDEN, INNER), name="gelu")
    b.output(norm(b.op("Add", linear(inner, "down", INNER, HIDDEN), h), "norm2"), "y")
    return b.program()


def test_a_bert_layer() -> None:
    rows = 1 * 128
    table = program_cost(bert_layer(), {"batch": 1, "sequence": 128})
    ops = table.by_op()
    assert ops["MatMul"][1] == 4 * 2 * rows * HIDDEN**2 + 2 * 2 * rows * HIDDEN * INNER
    # two products of 2 * 128 * 128 * 384, and 13 operations for each of 12 * 128 * 128 scores
    assert ops["Attention"][1] == 2 * 2 * 128 * 128 * HIDDEN + 13 * HEADS * 128 * 128
    assert ops["Gelu"][1] == 10 * rows * INNER
    assert ops["LayerNormalization"][1] == 2 * 8 * rows * HIDDEN
    assert ops["Add"][1] == rows * (4 * HIDDEN + INNER + HIDDEN + 2 * HIDDEN)
    up = next(row for row in table.rows if row.node == "up")
    assert (up.read, up.written) == (4 * (rows * HIDDEN + HIDDEN * INNER), 4 * rows * INNER)
    assert table.exact and table.flops == pytest.approx(sum(flops for _, flops, _ in ops.values()))


def test_cost_grows_with_the_sizes() -> None:
    one, two = (program_cost(bert_layer(), {"batch": n, "sequence": 64}) for n in (1, 2))
    assert two.flops == 2 * one.flops
    assert two.traffic < 2 * one.traffic  # the weights are read once
    with pytest.raises(InputError):
        program_cost(bert_layer(), {"bach": 1})


def test_a_convolution() -> None:
    b = Builder()
    x = b.input("x", ("n", 64, 56, 56))
    y = b.op("Conv", x, b.weight("w", np.zeros((128, 32, 3, 3))), b.weight("b", np.zeros(128)), group=2,
             pads=[1, 1, 1, 1], strides=[2, 2], name="conv")  # fmt: skip
    b.output(b.op("GlobalAveragePool", y, name="pool"))
    conv, pool = program_cost(b.program(), {"n": 2}).rows
    outputs = 2 * 128 * 28 * 28
    assert conv.flops == outputs * (2 * 32 * 9 + 1)
    assert conv.read == 4 * (2 * 64 * 56 * 56 + 128 * 32 * 9 + 128) and conv.written == 4 * outputs
    assert pool.flops == outputs


def test_views_are_free_and_gather_reads_what_it_writes() -> None:
    b = Builder()
    ids = b.input("ids", ("n",), ir.DataType.INT64)
    rows = b.op("Gather", b.weight("table", np.zeros((50_000, 8))), ids)
    b.output(b.op("Reshape", rows, b.weight("shape", np.asarray([-1, 4])), name="y"))
    gather, view = program_cost(b.program(), {"n": 10}).rows
    assert (gather.flops, gather.read, gather.written) == (0, 4 * 80 + 8 * 10, 4 * 80)
    assert (view.flops, view.read, view.written) == (0, 0, 0)


def test_fused_operators_cost_what_they_replace() -> None:
    b = Builder()
    x = b.input("x", ("n", 16, 24))
    b.output(
        b.op("FusedMatMul", x, b.weight("w", np.zeros((32, 24))), domain=dialect.MICROSOFT, transB=1), "y"
    )
    b.output(b.op("MultiHeadAttention", x, x, x, domain=dialect.MICROSOFT, num_heads=2), "z")
    matmul, attention = program_cost(b.program(), {"n": 3}).rows
    assert matmul.flops == 2 * 3 * 16 * 32 * 24
    assert attention.flops == 3 * 16 * 16 * (4 * 24 + 13 * 2)


def test_loops_count_their_trips_and_say_when_they_are_unknown() -> None:
    def looped(trips: ir.Value | None, b: Builder) -> Program:
        body = Builder()
        body.input("i", (), ir.DataType.INT64)
        keep = body.input("keep", (), ir.DataType.BOOL)
        state = body.input("state", (4, 4))
        body.output(body.op("Identity", keep), "keep_out")
        body.output(body.op("MatMul", state, state, name="product"))
        start = b.input("start", (4, 4))
        b.output(b.op("Loop", trips, b.weight("go", np.asarray(True)), start, body=body.graph), "y")
        return b.program()

    b = Builder()
    known = program_cost(looped(b.weight("trips", np.asarray(5)), b))
    assert known.flops == 5 * 2 * 4**3 and known.exact
    b = Builder()
    unknown = program_cost(looped(b.input("trips", (), ir.DataType.INT64), b))
    assert unknown.flops == 2 * 4**3 and not unknown.exact


def test_opaque_operators_are_inexact() -> None:
    b = Builder()
    b.output(b.op("Acme", b.input("x", (2,)), domain="acme"), "y")
    assert not program_cost(_typed(b)).exact


def _typed(b: Builder) -> Program:
    b.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return b.program()


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory() -> None:
    toy = Device("toy", {"FLOAT": 1.0, "FLOAT16": 2.0}, gbytes=1.0)
    assert toy.seconds(2e9, 1e9) == 2.0
    assert toy.seconds(2e9, 1e9, ir.DataType.FLOAT16) == 1.0
    assert toy.seconds(1e9, 3e9) == 3.0
    table = program_cost(bert_layer(), {"batch": 1, "sequence": 128})
    assert table.seconds(toy) == pytest.approx(sum(row.seconds(toy) for row in table.rows))
    assert table.seconds(toy) > table.flops / 1e9


def test_the_catalogue_is_asked_by_name() -> None:
    assert device("h100-sxm") is CATALOGUE["h100-sxm"]
    with pytest.raises(OptionError, match="h100-sxm"):
        device("h1000")


def test_a_concrete_clone_leaves_the_program_symbolic() -> None:
    program = bert_layer()
    clone = concrete_model(program.main, {"batch": 2, "sequence": 8})
    assert all(v.shape is not None and v.shape.is_static() for n in clone.graph for v in n.outputs)
    assert str(program.outputs()[0]) == "y: float32[batch, sequence, 384]"
    assert (
        clone.graph.initializers["q.weight"].const_value
        is program.main.graph.initializers["q.weight"].const_value
    )
