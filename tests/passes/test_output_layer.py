"""The output layer that is kept in more bits: one of logits over a vocabulary, not any network's last."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import INT64, Builder
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.sparsity.prune import PruneWeights
from miaotui.passes.weight_uses import weight_uses
from support.rewriting import run_pass

WIDTH, TOKENS = 32, 96


def mlp() -> Program:
    """x: float32[batch, 32] → Relu(x·w)·v, plus a bias."""
    rng = np.random.default_rng(0)
    b = Builder()
    hidden = b.op("Relu", b.op("MatMul", b.input("x", ("batch", WIDTH)), weight(b, rng, "w", WIDTH)))
    made = b.op("MatMul", hidden, weight(b, rng, "v", TOKENS))
    b.output(b.op("Add", made, b.weight("c", np.ones(TOKENS))), "y")
    return b.program()


def tagger(labels: int, cast: bool = False) -> Program:
    """ids: int64[batch, tokens] → rows of a table → y: float32[batch, tokens, labels]."""
    rng = np.random.default_rng(0)
    b = Builder()
    ids = b.input("ids", ("batch", "tokens"), INT64)
    looked_up = b.op("Cast", b.op("Cast", ids, to=6), to=7) if cast else ids
    x = b.op("Gather", b.weight("table", rng.standard_normal((TOKENS, WIDTH))), looked_up)
    b.output(b.op("MatMul", x, weight(b, rng, "v", labels)), "y")
    return b.program()


def weight(b: Builder, rng: np.random.Generator, name: str, columns: int) -> ir.Value:
    return b.weight(name, rng.standard_normal((WIDTH, columns)))


def is_head(program: Program, name: str = "v") -> bool:
    return weight_uses(program.main.graph.initializers[name]).head


@pytest.mark.parametrize(
    ("program", "head"),
    [
        (mlp(), False), (tagger(TOKENS), True), (tagger(TOKENS, cast=True), True), (tagger(64), False),
    ],
)  # fmt: skip
def test_it_is_as_wide_as_the_table_of_its_tokens(program: Program, head: bool) -> None:
    assert is_head(program) == head


def test_the_last_layer_of_an_mlp_is_rounded_and_pruned_as_the_others() -> None:
    hits = run_pass(QuantizeWeights(bits=4, least=1), mlp()).hits
    assert ["in 4 bits" in str(note) for note in hits] == [True, True]
    hits = run_pass(QuantizeWeights(bits=4, least=1), tagger(TOKENS)).hits
    assert {note.node: "in 8 bits" in note.text for note in hits} == {"table": True, "v": True}
    fast = PassContext(speed=lambda *known: 4.0)
    step = PruneWeights(pattern="block", sparsity=0.75, least=1)
    assert step.run(mlp(), fast).changed == 2
    assert [note.text for note in step.run(tagger(TOKENS), fast).declined if note.node == "v"] == [
        "it is the output layer (output=true prunes it)"
    ]
