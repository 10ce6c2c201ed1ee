"""prune-channels and prune-heads on small graphs: as good as zeroed weights, corrected, or declined."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.moments import Moment
from miaotui.passes.observers import run_pipeline
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.sparsity import PruneChannels, PruneHeads
from miaotui.passes.sparsity.importance import Quota, corrected, surgeon
from support.rewriting import Arrays, assert_same, reasons, run_pass

RNG = np.random.default_rng(5)


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def mlp(kind: str = "gated", inner: int = 48, extra: str = "") -> Program:
    """One MLP from 24 to 20 channels through ``inner``. ``extra``: what else reads the hidden channels."""
    b = Builder()
    x = b.input("x", ("batch", "tokens", 24))
    if kind == "fused":
        both = b.op(
            "Add", b.op("MatMul", x, b.weight("up", normal(24, 2 * inner))), b.weight("c", normal(2 * inner))
        )
        gate, up = b.ops("Split", both, outputs=2, axis=-1, num_outputs=2)
        h = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up, name="h")
    elif kind == "sliced":
        both = b.op("MatMul", x, b.weight("up", normal(24, 2 * inner)))
        middle, last = b.weight("middle", np.array([inner])), b.weight("last", np.array([2**60]))
        first, step = b.weight("first", np.array([0])), b.weight("step", np.array([-1]))
        h = b.op(
            "Mul", b.op("Slice", both, first, middle, step), b.op("Slice", both, middle, last, step), name="h"
        )
    elif kind == "gated":
        gate = b.op("Gelu", b.op("MatMul", x, b.weight("gate", normal(24, inner))))
        up = b.op("Transpose", b.weight("up", normal(inner, 24)), perm=[1, 0])
        h = b.op("Mul", gate, b.op("Add", b.op("MatMul", x, up), b.weight("bias", normal(inner))), name="h")
    else:
        flat = b.op("Reshape", x, b.weight("flat", np.array([-1, 24])))
        up = b.op("Gemm", flat, b.weight("up", normal(inner, 24)), b.weight("bias", normal(inner)), transB=1)
        h = b.op(
            "Clip",
            b.op("Relu", up),
            b.weight("low", np.float32(0)),
            b.weight("high", np.float32(6)),
            name="h",
        )
    b.output(b.op("MatMul", h, b.weight("down", normal(inner, 20))), "y")
    if extra == "product":
        b.output(b.op("MatMul", h, b.weight("other", normal(inner, 4))), "z")
    elif extra == "softmax":
        b.output(b.op("MatMul", b.op("Softmax", h, axis=-1), b.weight("other", normal(inner, 4))), "z")
    elif extra == "output":
        b.output(h, "h")
    return b.program()


def feed() -> Arrays:
    return {"x": normal(2, 5, 24)}


def array(program: Program, name: str) -> Any:
    return program.main.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]


def rows_kept(before: Any, after: Any) -> Any:
    """bool: which rows of ``before`` are in ``after``, which has them in order and no others."""
    kept = (before[:, None] == after[None]).all(-1).any(1)
    np.testing.assert_array_equal(before[kept], after)
    return kept


def zeroed(program: Program, name: str, kept: Any) -> Program:
    """``program`` with the other rows of a weight at zero."""
    made = program.clone()
    value = made.main.graph.initializers[name]
    value.const_value = ir.tensor(array(program, name) * kept[:, None].astype(np.float32), name=name)
    return made


def moment(program: Program, case: Arrays, name: str = "h") -> PassContext:
    h = evaluate(program.main, case, [name])[name]
    rows = h.reshape(-1, h.shape[-1])
    return PassContext(moments={name: Moment(rows.T @ rows / len(rows), len(rows))})


@pytest.mark.parametrize("kind", ["gated", "fused", "sliced", "gemm"])
def test_removed_channels_are_as_good_as_zero(kind: str) -> None:
    program, case = mlp(kind), feed()
    source = program.clone()
    result = run_pass(PruneChannels(share=0.3), program)
    assert result.changed == 1, reasons(result)
    down = array(program, "down")
    assert down.shape == (32, 20), "48 channels without 30 %, in multiples of 16"
    kept = rows_kept(array(source, "down"), down)
    hidden = next(v for n in program.main.graph for v in n.outputs if v.name == "h")
    assert hidden.shape is not None and hidden.shape[-1] == 32
    assert_same(evaluate(zeroed(source, "down", kept).main, case), evaluate(program.main, case))


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ("product", "down and other read the same ones"),
        ("softmax", "normalises over them"),
        ("output", "in the output h of the model"),
    ],
)
def test_channels_that_others_read_stay(extra: str, why: str) -> None:
    program = mlp("gated", extra=extra)
    before = {name: v.const_value for name, v in program.main.graph.initializers.items()}
    result = run_pass(PruneChannels(), program)
    assert not result.changed
    assert why in reasons(result)
    assert all(program.main.graph.initializers[name].const_value is t for name, t in before.items())


def test_declines_with_the_figures() -> None:
    assert "30% of 16 is none" in reasons(run_pass(PruneChannels(), mlp(inner=16)))
    assert "is to be kept" in reasons(run_pass(PruneChannels(keep=("down",)), mlp()))
    context = PassContext(plan={"prune-channels": {"down": "off"}})
    assert "the budget keeps it" in reasons(run_pass(PruneChannels(), mlp(), context))
    assert "asks for calibration" in reasons(run_pass(PruneChannels(method="surgeon"), mlp()))
    for options in ({"share": 1.5}, {"method": "luck"}, {"multiple": 0}):
        with pytest.raises(OptionError):
            PruneChannels(**options)
    with pytest.raises(OptionError):
        PruneHeads(groups="some")


def test_plan_has_a_share_of_its_own_for_a_layer() -> None:
    program = mlp()
    run_pass(PruneChannels(), program, PassContext(plan={"prune-channels": {"down": "share=0.6"}}))
    assert array(program, "down").shape == (16, 20)


def test_nothing_else_is_shaped_by_an_odd_size() -> None:
    program, case = mlp(inner=37), feed()
    source = program.clone()
    run_pass(PruneChannels(share=0.5, multiple=1), program)
    kept = rows_kept(array(source, "down"), array(program, "down"))
    assert kept.sum() == 18
    assert_same(evaluate(zeroed(source, "down", kept).main, case), evaluate(program.main, case))


def test_entries_go_on_sharing_their_weights() -> None:
    program = mlp()
    program.entries["decode"] = program.main.clone()
    assert run_pass(PruneChannels(), program).changed == 2
    first, second = (m.graph.initializers for m in program.entries.values())
    assert all(first[n].const_value is second[n].const_value for n in ("gate", "up", "down", "bias"))


def test_a_bias_that_layers_share_is_cut_for_each() -> None:
    b = Builder()
    x, bias = b.input("x", ("batch", 24)), b.weight("bias", normal(32))
    for layer in range(2):
        h = b.op("Relu", b.op("Add", b.op("MatMul", x, b.weight(f"up{layer}", normal(24, 32))), bias))
        x = b.op("MatMul", h, b.weight(f"down{layer}", normal(32, 24)))
        x = b.op("LayerNormalization", x, b.weight(f"norm{layer}", np.ones(24)), axis=-1)
    b.output(x, "y")
    program, case = b.program(), {"x": normal(3, 24)}
    source = program.clone()
    run_pass(PruneChannels(share=0.5), program)
    for name in ("down0", "down1"):
        source = zeroed(source, name, rows_kept(array(source, name), array(program, name)))
    assert_same(evaluate(source.main, case), evaluate(program.main, case))


def test_correction_is_the_least_squares_solution() -> None:
    program, case = mlp(), {"x": normal(40, 5, 24)}
    source, context = program.clone(), moment(program, case)
    result = run_pass(PruneChannels(method="surgeon", share=0.3), program, context)
    assert result.changed == 1
    h = evaluate(source.main, case, ["h"])["h"].reshape(-1, 48)
    small = evaluate(program.main, case, ["h"])["h"].reshape(-1, 32)
    kept = np.abs(h[:, :, None] - small[:, None]).sum(0).argmin(0)
    wanted = h @ array(source, "down")
    ridge = np.sqrt(0.01 * np.square(h).mean() * len(h)) * np.eye(48)  # the damping, as rows of data
    design = np.vstack([h, ridge])
    solved = np.linalg.lstsq(design[:, kept], np.vstack([wanted, ridge @ array(source, "down")]), rcond=None)[
        0
    ]
    np.testing.assert_allclose(array(program, "down"), solved, atol=2e-3)
    plain = source.clone()
    run_pass(PruneChannels(method="moment", share=0.3), plain, context)
    errors = [
        np.square(evaluate(p.main, case)["y"] - wanted.reshape(40, 5, 20)).mean() for p in (program, plain)
    ]
    assert errors[0] < 0.8 * errors[1], "others make up for what is gone"


def test_surgeon_finds_what_trying_all_pairs_finds() -> None:
    mix, weight = normal(200, 9) @ normal(9, 9), normal(4, 9)
    matrix = mix.T @ mix / 200
    damped = matrix + 0.01 * np.diagonal(matrix).mean() * np.eye(9)

    def loss(kept: Any) -> float:
        columns = np.flatnonzero(kept)
        change = weight.astype(np.float64)
        change[:, columns] -= corrected(weight, matrix, columns)
        return float(np.einsum("ij,jk,ik->", change, damped, change))

    def without(gone: Any) -> Any:
        kept = np.ones(9, bool)
        kept[list(gone)] = False
        return kept

    one = surgeon(weight, np.arange(9), matrix, Quota([np.arange(9)], 1))
    assert loss(one) == pytest.approx(min(loss(without([i])) for i in range(9)), rel=1e-4)
    two = surgeon(weight, np.arange(9), matrix, Quota([np.arange(9)], 2))
    every = sorted(loss(without(pair)) for pair in itertools.combinations(range(9), 2))
    assert loss(two) <= every[3], "greedy is among the best"
    blocks = surgeon(weight, np.arange(9) // 3, matrix, Quota([np.arange(3)], 1))
    assert loss(blocks.repeat(3)) == pytest.approx(
        min(loss(without(range(3 * i, 3 * i + 3))) for i in range(3)), rel=1e-4
    )


def test_of_equal_channels_the_first_stay() -> None:
    units, matrix = np.arange(6), np.eye(6, dtype=np.float32)
    kept = surgeon(np.ones((2, 6), np.float32), units, matrix, Quota([units], 3))
    np.testing.assert_array_equal(kept, [1, 1, 1, 0, 0, 0])


def test_passes_behind_get_the_moments_of_what_is_left() -> None:
    program, case = mlp(), feed()
    context, seen = moment(program, case), {}

    class Look(QuantizeWeights):
        def run(self, program: Program, context: PassContext) -> Any:
            seen["h"] = (context.moments or {})["h"]
            return super().run(program, context)

    run_pipeline(program, [PruneChannels(method="moment"), Look(least=1, keep=("gate", "up"))], context)
    h = evaluate(program.main, case, ["h"])["h"].reshape(-1, 32)
    np.testing.assert_allclose(seen["h"].matrix, h.T @ h / len(h), rtol=1e-3, atol=1e-4)
    assert context.moments is not None and context.moments["h"].matrix.shape == (48, 48)


def test_convolutions_in_a_chain() -> None:
    b = Builder()
    x = b.input("x", ("batch", 3, 9, 9))
    h = b.op("Relu", b.op("Conv", x, b.weight("w1", normal(32, 3, 3, 3)), b.weight("b1", normal(32))))
    h = b.op(
        "Relu", b.op("Conv", h, b.weight("deep", normal(32, 1, 3, 3)), b.weight("b2", normal(32)), group=32)
    )
    scales = [b.weight(n, np.abs(normal(32))) for n in ("s", "t", "m", "v")]
    h = b.op("MaxPool", b.op("BatchNormalization", h, *scales), kernel_shape=[2, 2])
    b.output(b.op("Conv", h, b.weight("w2", normal(8, 32, 1, 1))), "y")
    program, case = b.program(), {"x": normal(2, 3, 9, 9)}
    source = program.clone()
    assert run_pass(PruneChannels(share=0.5), program).changed == 1
    turned = [np.moveaxis(array(p, "w2"), 1, 0).reshape(-1, 8) for p in (source, program)]
    kept = rows_kept(*turned)
    value = source.main.graph.initializers["w2"]
    value.const_value = ir.tensor(array(source, "w2") * kept[:, None, None].astype(np.float32), name="w2")
    assert_same(evaluate(source.main, case), evaluate(program.main, case))
    assert array(program, "deep").shape == (16, 1, 3, 3)


def attention(rank: int, kv: int = 2, mask: bool = False, cached: bool = False) -> Program:
    """4 query heads of 8, grouped."""
    b = Builder()
    x = b.input("x", ("batch", "tokens", 24))
    q, k, v = (b.op("MatMul", x, b.weight(n, normal(24, 8 * h))) for n, h in (("q", 4), ("k", kv), ("v", kv)))
    if rank == 4:
        cuts = {n: b.weight(f"cut{n}", np.array([0, 0, n, 8])) for n in {4, kv}}
        q, k, v = (
            b.op("Transpose", b.op("Reshape", t, cuts[n]), perm=[0, 2, 1, 3])
            for t, n in ((q, 4), (k, kv), (v, kv))
        )
    bias = b.weight("alibi", normal(4, 5, 5)) if mask else None
    counts: dict[str, Any] = {} if rank == 4 else {"q_num_heads": 4, "kv_num_heads": kv}
    y, present, *_ = b.ops("Attention", q, k, v, bias, outputs=3, is_causal=1, **counts)
    if rank == 4:
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.weight("flat", np.array([0, 0, 32])))
    b.output(b.op("MatMul", y, b.weight("o", normal(32, 24))), "y")
    if cached:
        b.output(present, "present")
    return b.program()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("kv", "groups"), [(4, "auto"), (2, "whole"), (2, "each"), (1, "auto")])
@pytest.mark.parametrize("rank", [3, 4])
def test_removed_heads_are_as_good_as_zero(rank: int, kv: int, groups: str, mask: bool) -> None:
    program, case = attention(rank, kv, mask), feed()
    source = program.clone()
    result = run_pass(PruneHeads(share=0.5, groups=groups), program)
    assert result.changed == 1, reasons(result)
    kept = rows_kept(array(source, "o"), array(program, "o"))
    assert array(program, "q").shape == (24, 16)
    assert array(program, "k").shape == (24, {"whole": 8, "each": 16}.get(groups, 16 if kv == 4 else 8))
    assert_same(evaluate(zeroed(source, "o", kept).main, case), evaluate(program.main, case))


def test_heads_of_a_visible_cache_stay() -> None:
    program = attention(3, cached=True)
    assert "has other outputs" in reasons(run_pass(PruneHeads(share=0.5), program))


def test_a_quarter_of_two_heads_is_none() -> None:
    assert "25% of 2 or 2 is none" in reasons(run_pass(PruneHeads(), attention(3)))
