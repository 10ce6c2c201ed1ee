"""narrow-heads on small graphs and exported transformers: nothing lost where the channels were too many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import CompileOptions
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.moments import Moment
from miaotui.passes.observers import run_pipeline
from miaotui.passes.pipeline import pipeline
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.sparsity import NarrowHeads, PruneHeads
from miaotui.passes.sparsity.bases import fitted, score_bases, value_bases
from support.rewriting import Arrays, assert_same, reasons, run_pass

RNG = np.random.default_rng(11)
SIZE, IN = 16, 40


def normal(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def thin(rows: int, heads: int, rank: int = 8) -> Any:
    """A weight [rows, heads·SIZE] whose heads reach ``rank`` directions of their channels."""
    return np.concatenate([normal(rows, rank) @ normal(rank, SIZE) / 12 for _ in range(heads)], axis=1)


def feed() -> Arrays:
    return {"x": normal(20, 12, IN)}


def array(program: Program, name: str) -> Any:
    return program.main.graph.initializers[name].const_value.numpy()  # type: ignore[union-attr]


def attention(form: str = "flat", kv: int = 4, **weights: Any) -> Program:
    """4 query heads of 16 over ``kv``; ``form``: how query, key and value are made and lie.

    ``fused``: one weight makes all three; ``beside``: head by head; ``scaled``: a factor stands behind.
    """
    b = Builder()
    x = b.input("x", ("batch", "tokens", IN))
    made = {n: weights.get(n, thin(IN, h)) for n, h in (("q", 4), ("k", kv), ("v", kv))}
    if form == "fused":
        every = np.concatenate(list(made.values()), axis=1)
        whole = b.op("MatMul", x, b.weight("qkv", every))
        whole = b.op("Add", whole, b.weight("bias", every.mean(0)))  # within the ranks
        widths = b.weight("widths", np.array([SIZE * h for h in (4, kv, kv)]))
        q, k, v = b.ops("Split", whole, widths, outputs=3, axis=-1)
        v = b.op("Add", v, b.weight("shift", made["v"].mean(0)))
    elif form == "beside":
        parts = [made[n].reshape(IN, 4, 1, SIZE) for n in ("q", "k", "v")]
        whole = b.op("MatMul", x, b.weight("qkv", np.concatenate(parts, axis=2).reshape(IN, -1)))
        whole = b.op("Reshape", whole, b.weight("apart", np.array([0, 0, 4, 3 * SIZE])))
        whole = b.op("Transpose", whole, perm=[0, 2, 1, 3])
        q, k, v = b.ops("Split", whole, outputs=3, axis=-1, num_outputs=3)
    else:
        q, k, v = (b.op("MatMul", x, b.weight(n, w)) for n, w in made.items())
    if form == "split":
        cuts = {n: b.weight(f"cut{n}", np.array([0, 0, n, SIZE])) for n in {4, kv}}
        q, k, v = (
            b.op("Transpose", b.op("Reshape", t, cuts[n]), perm=[0, 2, 1, 3])
            for t, n in ((q, 4), (k, kv), (v, kv))
        )
    if form == "scaled":
        q = b.op("Mul", q, b.weight("factor", np.float32(0.5)))
    if form == "normed":
        k = b.op("Reshape", k, b.weight("cut", np.array([0, 0, kv, SIZE])))
        k = b.op("LayerNormalization", k, b.weight("norm", np.ones(SIZE)), axis=-1)
        k = b.op("Reshape", k, b.weight("whole", np.array([0, 0, kv * SIZE])))
    if form == "weighed":
        v = b.op("Mul", v, b.weight("each", np.abs(normal(kv * SIZE))))
    heads_first = form in ("split", "beside")
    counts: dict[str, Any] = {} if heads_first else {"q_num_heads": 4, "kv_num_heads": kv}
    y = b.op("Attention", q, k, v, is_causal=1, name="attended", **counts)
    if heads_first:
        y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.weight("flat", np.array([0, 0, 64])))
    b.output(b.op("MatMul", y, b.weight("o", normal(64, 24)), name="read"), "y")
    if form == "shared":
        other = b.op("MatMul", x, b.weight("v2", normal(IN, 16 * kv)))
        b.output(b.op("Attention", q, k, other, is_causal=1, name="second", **counts), "z")
    return b.program()


def measured(program: Program, case: Arrays) -> PassContext:
    """Moments of what the products read."""
    names = {str(n.inputs[0].name) for n in program.main.graph if n.op_type == "MatMul"}  # type: ignore[union-attr]
    found = {**case, **evaluate(program.main, case, sorted(names - {"x"}))}
    rows = {name: found[name].reshape(-1, found[name].shape[-1]) for name in names}
    return PassContext(moments={n: Moment(r.T @ r / len(r), len(r)) for n, r in rows.items()})


@pytest.mark.parametrize("kv", [4, 2, 1])
@pytest.mark.parametrize("form", ["flat", "split", "fused", "scaled"])
def test_channels_beyond_the_rank_of_heads_cost_nothing(form: str, kv: int) -> None:
    program, case = attention(form, kv), feed()
    source = program.clone()
    result = run_pass(NarrowHeads(share=0.5), program, measured(source, case))
    assert result.changed == 1, reasons(result)
    assert array(program, "o").shape == (32, 24)
    weights = [array(program, n).shape[1] for n in (("qkv",) if form == "fused" else ("q", "k", "v"))]
    assert sum(weights) == 8 * (4 + 2 * kv)
    assert_same(evaluate(source.main, case), evaluate(program.main, case), 3e-2)


def test_heads_of_one_weight_side_by_side() -> None:
    program, case = attention("beside"), feed()
    source = program.clone()
    assert run_pass(NarrowHeads(share=0.5), program, measured(source, case)).changed == 1
    assert array(program, "qkv").shape == (IN, 96)
    assert_same(evaluate(source.main, case), evaluate(program.main, case), 3e-2)


def test_less_than_the_rank_of_heads_costs_what_the_note_says() -> None:
    case = feed()
    source = attention(v=normal(IN, 64))
    program = source.clone()
    result = run_pass(NarrowHeads(share=0.5), program, measured(source, case))
    wanted, got = (evaluate(p.main, case)["y"] for p in (source, program))
    lost = np.square(wanted - got).mean() / np.square(wanted).mean()
    told = float(result.hits[0].text.partition("kept, ")[2].partition("%")[0]) / 100
    assert 0.05 < told < 0.5
    assert lost == pytest.approx(told, rel=0.1), "the scores lose nothing here"


def test_without_calibration_weights_alone_tell_the_rank() -> None:
    program, case = attention("split", 2), feed()
    source = program.clone()
    assert run_pass(NarrowHeads(share=0.5), program).changed == 1
    assert_same(evaluate(source.main, case), evaluate(program.main, case), 3e-2)


def test_value_bases_leave_what_the_best_approximation_leaves() -> None:
    mix, weight = normal(300, 24) @ normal(24, 24), normal(7, 24)
    matrix = mix.T @ mix / 300
    (basis,) = value_bases(matrix[:8, :8], weight[:, :8], [[0]], 3)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-10)
    values, vectors = np.linalg.eigh(matrix[:8, :8])
    powers = np.linalg.svd((vectors * np.sqrt(values)).T @ weight[:, :8].T, compute_uv=False)
    change = fitted(weight[:, :8], matrix[:8, :8], basis) @ basis.T - weight[:, :8]
    lost = np.einsum("ij,jk,ik->", change, matrix[:8, :8], change)
    assert lost == pytest.approx(np.square(powers[3:]).sum(), rel=0.01), "Eckart and Young"


def test_score_bases_leave_what_the_best_approximation_leaves() -> None:
    (q, k), size = (normal(200, 6) @ normal(6, 6) for _ in range(2)), 6
    moments = [x.T.astype(np.float64) @ x / 200 for x in (q, k)]
    a, b, told = score_bases(*moments, 2)
    exact, kept = (np.einsum("ni,ij,mj->nm", q, map_, k) for map_ in (np.eye(size), a @ b.T))
    lost = np.square(exact - kept).sum() / np.square(exact).sum()
    assert told == pytest.approx(lost, rel=0.01)
    for _ in range(50):  # nothing near it is better
        other = a + normal(6, 2) * 0.02
        assert np.square(exact - q @ other @ b.T @ k.T).sum() >= np.square(exact - kept).sum()


@pytest.mark.parametrize(
    ("form", "options", "why"),
    [
        ("normed", {}, "LayerNormalization"),
        ("shared", {}, "more than the attention reads"),
        ("weighed", {}, "treats the channels of a head one by one"),
        ("flat", {"keep": ("o",)}, "to be kept"),
        ("flat", {"share": 0.3}, "30% of 16 channels of a head is none if a multiple of 8 stays"),
    ],
)
def test_heads_that_stay(form: str, options: dict[str, Any], why: str) -> None:
    program = attention(form)
    before = {name: v.const_value for name, v in program.main.graph.initializers.items()}
    result = run_pass(NarrowHeads(**{"share": 0.5, **options}), program)
    assert not result.changed
    assert why in reasons(result)
    assert all(program.main.graph.initializers[name].const_value is t for name, t in before.items())


def test_values_alone_where_keys_have_to_stay() -> None:
    program, case = attention("normed"), feed()
    source = program.clone()
    result = run_pass(NarrowHeads(share=0.5, values_alone=True), program, measured(source, case))
    assert "keys stay: LayerNormalization" in result.hits[0].text
    assert [array(program, n).shape[1] for n in ("q", "k", "v")] == [64, 64, 32]
    assert_same(evaluate(source.main, case), evaluate(program.main, case), 3e-2)


def test_the_budget_says_which_layers_stay() -> None:
    context = PassContext(plan={"narrow-heads": {"o": "off"}})
    assert "the budget keeps them" in reasons(run_pass(NarrowHeads(share=0.5), attention(), context))
    program = attention()
    run_pass(NarrowHeads(share=0.25), program, PassContext(plan={"narrow-heads": {"o": "share=0.5"}}))
    assert array(program, "o").shape == (32, 24)


def test_channels_on_the_command_line_stand_for_those_of_heads_too() -> None:
    def steps(**options: Any) -> dict[str, Any]:
        return {step.name: step for step in pipeline(CompileOptions(sparsity="channels:0.4", **options))}

    assert steps()["narrow-heads"] == NarrowHeads(share=0.4)
    assert steps(backend="native")["narrow-heads"] == NarrowHeads(share=0.4, values_alone=True)
    assert {"narrow-heads", "prune-channels"} & steps(budget=0.1).keys() == {"prune-channels"}
    assert "narrow-heads" not in {step.name for step in pipeline(CompileOptions(sparsity="heads:0.4"))}


def test_options_out_of_range() -> None:
    for options in ({"share": 1.5}, {"share": 0.0}, {"multiple": 0}):
        with pytest.raises(OptionError):
            NarrowHeads(**options)  # type: ignore[arg-type]


def test_entries_go_on_sharing_their_weights() -> None:
    program = attention("fused")
    program.entries["decode"] = program.main.clone()
    assert run_pass(NarrowHeads(share=0.5), program).changed == 2
    first, second = (m.graph.initializers for m in program.entries.values())
    assert all(first[n].const_value is second[n].const_value for n in ("qkv", "bias", "o"))


def test_passes_behind_get_the_moments_of_narrow_heads() -> None:
    program, case = attention(), feed()
    context, seen = measured(program, case), {}
    name = next(str(n.inputs[0].name) for n in program.main.graph if n.name == "read")  # type: ignore[union-attr]

    class Look(QuantizeWeights):
        def run(self, program: Program, context: PassContext) -> Any:
            seen[name] = (context.moments or {})[name]
            return super().run(program, context)

    run_pipeline(program, [NarrowHeads(share=0.5), Look(least=10**9)], context)
    y = evaluate(program.main, case, [name])[name].reshape(-1, 32)
    matrix = y.T @ y / len(y)
    np.testing.assert_allclose(seen[name].matrix, matrix, atol=0.05 * np.abs(matrix).max())


def test_fewer_heads_and_narrower_ones() -> None:
    program, case = attention("split", 2), feed()
    run_pipeline(program, [PruneHeads(share=0.5), NarrowHeads(share=0.5)], measured(program, case))
    assert array(program, "o").shape == (16, 24)
    assert np.isfinite(evaluate(program.main, case)["y"]).all()
