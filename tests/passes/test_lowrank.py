"""factor-weights: the best rank under the data, joins, what is declined, int8 behind it, decoders."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.ir.constants import constant
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import Pass, PassContext, PassResult
from miaotui.passes.lowrank import FactorWeights
from miaotui.passes.lowrank.factors import factors, spectrum
from miaotui.passes.moments import Moment
from miaotui.passes.observers import run_pipeline
from miaotui.passes.pipeline import all_passes
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.weight_uses import weight_uses
from support.rewriting import Arrays, assert_same, operators, reasons, run_pass

RNG = np.random.default_rng(3)
FORCED = FactorWeights(force=True, least=1)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def low(rows: int, columns: int, rank: int) -> Any:
    return normal(rows, rank) @ normal(rank, columns) / np.float32(np.sqrt(rank))


def layer(*weights: Any, kind: str = "matmul") -> Program:
    """Products of one input with weights [columns, rows], ``y0``, ``y1``, …"""
    b = Builder()
    x = b.input("x", ("batch", weights[0].shape[0]))
    h = b.op("Relu", x, name="h")
    for index, array in enumerate(weights):
        if kind == "gemm":
            bias = b.weight(f"c{index}", normal(array.shape[1]))
            y = b.op("Gemm", h, b.weight(f"w{index}", array.T), bias, transB=1)
        elif kind == "transposed":
            y = b.op("MatMul", h, b.op("Transpose", b.weight(f"w{index}", array.T), perm=[1, 0]))
        else:
            y = b.op(
                "Add",
                b.op("MatMul", h, b.weight(f"w{index}", array)),
                b.weight(f"c{index}", normal(array.shape[1])),
            )
        b.output(y, f"y{index}")
    return b.program()


def measured(program: Program, case: Arrays) -> PassContext:
    h = evaluate(program.main, case, ["h"])["h"]
    return PassContext(moments={"h": Moment(h.T @ h / len(h), len(h))})


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("rows", "columns"), [(24, 40), (40, 24), (17, 17)])
def test_no_rank_loses_less(rows: int, columns: int, known: bool) -> None:
    """Against the singular value decomposition of W·M^½ with an inverted root, as the papers have it."""
    weight, mix = normal(rows, columns), normal(300, columns) * np.exp(normal(columns))
    matrix = mix.T @ mix / 300
    found = spectrum(weight, matrix if known else None)
    values, vectors = np.linalg.eigh(matrix.astype(np.float64) if known else np.eye(columns))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    u, s, v = np.linalg.svd(weight @ root)
    for rank in (1, 5, 11):
        thin, first = factors(weight, found, rank)
        assert (thin.shape, first.shape) == ((rows, rank), (rank, columns))
        best = (u[:, :rank] * s[:rank]) @ v[:rank] @ np.linalg.inv(root)
        lost = [np.square((w - weight) @ root).sum() for w in (thin @ first, best)]
        assert lost[0] == pytest.approx(lost[1], rel=2e-3)
        assert found.lost(rank) == pytest.approx(lost[1] / np.square(s).sum(), rel=2e-3)
        assert found.rank(found.lost(rank) * 1.001) == rank


def test_a_moment_without_full_rank_will_do() -> None:
    weight, mix = normal(40, 24), normal(7, 24)
    found = spectrum(weight, mix.T @ mix / 7)
    thin, first = factors(weight, found, 8)
    np.testing.assert_allclose(mix @ (thin @ first).T, mix @ weight.T, atol=1e-2)


@pytest.mark.parametrize("kind", ["matmul", "gemm", "transposed"])
def test_a_weight_of_low_rank_gives_the_same(kind: str) -> None:
    program, case = layer(low(64, 96, 16), kind=kind), {"x": normal(5, 64)}
    wanted = evaluate(program.main, case)
    result = run_pass(FactorWeights(rank=0.5, force=True, least=1), program)
    assert result.changed == 1, reasons(result)
    assert_same(wanted, evaluate(program.main, case), 1e-5)
    shapes = {
        v.shape.numpy() for n, v in program.main.graph.initializers.items() if n.startswith("w") and v.shape
    }
    assert shapes == {(64, 16), (16, 96)}, "half of 38, in multiples of 16"


def test_shares_the_first_factor_where_that_loses_less() -> None:
    shared = normal(64, 24)
    alike = [shared @ normal(24, 48) + 0.01 * normal(64, 48) for _ in range(3)]
    program, case = layer(*alike), {"x": normal(50, 64)}
    wanted = evaluate(program.main, case)
    result = run_pass(
        FactorWeights(rank=0.6, force=True, least=1, multiple=1), program, measured(program, case)
    )
    assert result.changed == 3
    assert "with w1, w2" in result.hits[0].text
    assert operators(program)["MatMul"] == 4, "one first factor, three second"
    assert_same(wanted, evaluate(program.main, case), 2e-2)
    apart = layer(*alike)
    run_pass(FactorWeights(rank=0.6, force=True, least=1, join=False), apart)
    assert operators(apart)["MatMul"] == 6
    unlike = layer(*(low(64, 48, 16) for _ in range(3)))
    run_pass(FactorWeights(rank=0.6, force=True, least=1), unlike)
    assert operators(unlike)["MatMul"] == 6, "nothing in common: each has its own"


def test_loss_chooses_the_rank() -> None:
    program = layer(low(64, 96, 20) + 1e-3 * normal(64, 96))
    result = run_pass(FactorWeights(loss=0.01, force=True, least=1), program)
    assert "at rank 32" in result.hits[0].text, "20, rounded up"


def test_declines_what_does_not_pay_with_the_figures() -> None:
    program = layer(normal(64, 96))
    assert "times as fast, not 1.1" in reasons(run_pass(FactorWeights(least=1), program)), "too small"
    wide = layer(normal(576, 1536))
    assert "times as fast, not 1.1 (99% of the size)" in reasons(run_pass(FactorWeights(rank=0.99), wide))
    assert run_pass(FactorWeights(rank=0.5), wide.clone()).changed == 1
    assert "times as fast" in reasons(run_pass(FactorWeights(rank=0.5, bits=4), layer(normal(256, 256))))
    assert run_pass(FactorWeights(rank=0.5), layer(normal(256, 256))).changed == 1, "the same in float32"
    assert "times as fast" in reasons(run_pass(FactorWeights(loss=1e-6), wide)), (
        "random weights need them all"
    )


def test_declines_what_is_not_its_own() -> None:
    b = Builder()
    ids, x = b.input("ids", ("n",), INT64), b.input("x", ("n", 32))
    table = b.weight("table", normal(80, 32))
    b.output(
        b.op("MatMul", b.op("Add", b.op("Gather", table, ids), x), b.op("Transpose", table, perm=[1, 0])), "y"
    )
    twice = b.weight("twice", normal(32, 64))
    b.output(b.op("Add", b.op("MatMul", x, twice), b.op("MatMul", b.op("Relu", x), twice)), "z")
    result = run_pass(FORCED, b.program())
    assert not result.changed
    assert {n.node: n.text for n in result.declined} == {
        "table": "rows of it are looked up, too", "twice": "2 products read it",
    }  # fmt: skip
    program = layer(normal(64, 96))
    context = PassContext(plan={"factor-weights": {"w0": "off"}})
    assert "the budget keeps it" in reasons(run_pass(FORCED, program, context))
    assert "is to be kept" in reasons(run_pass(FactorWeights(keep=("w",), least=1), program))
    for options in ({"rank": 1.0}, {"loss": -1}, {"multiple": 0}, {"bits": 3}):
        with pytest.raises(OptionError):
            FactorWeights(**options)


def test_entries_share_the_factors() -> None:
    program = layer(normal(64, 96))
    program.entries["decode"] = program.main.clone()
    assert run_pass(FORCED, program).changed == 2
    first, second = (m.graph.initializers for m in program.entries.values())
    assert first["w0.in"].const_value is second["w0.in"].const_value
    assert first["w0.out"].const_value is second["w0.out"].const_value


class Seen(Pass):
    """Keeps the context it is run with."""

    name = "seen"

    def run(self, program: Program, context: PassContext) -> PassResult:
        seen.append(context)
        return PassResult()


seen: list[PassContext] = []


def test_few_bits_behind_it_know_the_moment_between() -> None:
    program, case = layer(low(64, 96, 16)), {"x": normal(40, 64)}
    wanted = evaluate(program.main, case)
    run_pipeline(program, [FORCED, Seen(), QuantizeWeights(least=1, block=16)], measured(program, case))
    assert operators(program)["DequantizeLinear"] == 2, "both factors"
    assert_same(wanted, evaluate(program.main, case), 3e-2)
    read = [n.inputs[0] for n in program.main.graph if n.op_type == "MatMul"]
    (name,) = (str(value.name) for value in read if value is not None and value.name != "h")
    clean = layer(low(64, 96, 16))
    run_pass(FORCED, clean)
    moments = seen[-1].moments
    assert moments is not None
    z = moments[name]
    assert z.matrix.shape == (16, 16)
    off = z.matrix - np.diag(np.diagonal(z.matrix))
    assert np.abs(off).max() < 1e-3 * np.diagonal(z.matrix).max(), "principal directions do not correlate"


def test_says_what_it_would_make_of_a_weight() -> None:
    program = layer(normal(576, 1536))
    value = program.main.graph.initializers["w0"]
    assert value.const_value is not None
    found = FactorWeights().approximation("w0", value.const_value, weight_uses(value), PassContext())
    assert found is not None
    run_pass(FactorWeights(), program)
    made = program.main.graph.initializers
    first, second = (constant(made[name], limit=None) for name in ("w0.in", "w0.out"))
    assert first is not None and second is not None
    np.testing.assert_allclose(found.array, first @ second, atol=1e-4)
    assert found.nbytes == first.nbytes + second.nbytes


def test_is_on_offer() -> None:
    names = list(all_passes())
    assert names.index("prune-heads") < names.index("prune-channels") < names.index("factor-weights")
    assert names.index("factor-weights") < names.index("quantize-weights") < names.index("derive-cache")
