"""raise-rotary and raise-partial-rotary: halves, pairs and tables, compared by the reference semantics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.printer import print_program
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.raising import RaisePartialRotary, RaiseRotary
from support.graphs import graph, normal
from support.rewriting import operators, reasons, run_pass

SIGNATURE = "(float[b, 4, s, 8] x, float[b, s, 4] angle) => (float[b, 4, s, 8] y)"
AXES = {"zero": [0], "one": [1], "two": [2], "half": [4], "end": [1 << 40], "last": [-1], "axis3": [3]}
HALVES = """a = Slice(x, zero, half, last, one) c = Slice(x, half, end, last, one) n = Neg(c)
    r = Concat<axis=-1>(n, a) """
TABLES = """f = Concat<axis=-1>(angle, angle) cf = Cos(f) sf = Sin(f) cos = Unsqueeze(cf, one)
    sin = Unsqueeze(sf, one) """
SUM = "p = Mul(x, cos) t = Mul(r, sin) y = Add(p, t)"
PAIRS = """a = Slice(x, zero, end, axis3, two) c = Slice(x, one, end, axis3, two) n = Neg(c)
    nu = Unsqueeze(n, last) au = Unsqueeze(a, last) k = Concat<axis=-1>(nu, au) r = Reshape(k, flat) """
PAIRED = """fu = Unsqueeze(angle, last) fe = Concat<axis=-1>(fu, fu) f = Reshape(fe, flat3)
    cf = Cos(f) sf = Sin(f) cos = Unsqueeze(cf, one) sin = Unsqueeze(sf, one) """


def same(program: Program, step: Any, feeds: list[dict[str, np.ndarray[Any, Any]]]) -> None:
    before = [evaluate(program.main, feed) for feed in feeds]
    run_pass(step, program)
    for feed, expected in zip(feeds, before, strict=True):
        np.testing.assert_allclose(evaluate(program.main, feed)["y"], expected["y"], rtol=1e-5, atol=1e-5)


def feeds(*sizes: tuple[int, int]) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [{"x": normal(b, 4, s, 8), "angle": normal(b, s, 4)} for b, s in sizes]


def test_raises_halves() -> None:
    program = graph(SIGNATURE, HALVES + TABLES + SUM, **AXES)
    same(program, RaiseRotary(), feeds((2, 5), (1, 3)))
    assert operators(program) == {"Cos": 1, "Sin": 1, "RotaryEmbedding": 1}
    node = next(n for n in program.main.graph if n.op_type == "RotaryEmbedding")
    assert node.attributes["interleaved"].value == 0 and node.attributes["num_heads"].value == 4


def test_raises_pairs_as_interleaved() -> None:
    body = PAIRS + PAIRED + "t = Mul(sin, r) p = Mul(cos, x) y = Add(t, p)"
    program = graph(SIGNATURE, body, flat=[0, 0, 0, -1], flat3=[0, 0, -1], **AXES)
    for value in (n.outputs[0] for n in program.main.graph if n.op_type == "Reshape"):
        assert value.shape is not None
    from miaotui.passes.cleanup import FoldShapes

    FoldShapes().run(program, PassContext())
    same(program, RaiseRotary(), feeds((2, 5), (1, 3)))
    node = next(n for n in program.main.graph if n.op_type == "RotaryEmbedding")
    assert node.attributes["interleaved"].value == 1


def test_raises_constant_tables_cut_to_the_sequence() -> None:
    angles = np.outer(np.arange(16), [1.0, 0.3, 0.1, 0.01])
    full = np.concatenate([angles, angles], axis=-1).astype(np.float32)[None, None]
    signature = "(float[b, 4, 6, 8] x) => (float[b, 4, 6, 8] y)"
    program = graph(signature, HALVES + SUM, cos=np.cos(full[:, :, :6]), sin=np.sin(full[:, :, :6]), **AXES)
    same(program, RaiseRotary(), [{"x": normal(2, 4, 6, 8)}])
    assert operators(program) == {"Squeeze": 2, "RotaryEmbedding": 1}
    body = (
        "cu = Unsqueeze(ct, one) su = Unsqueeze(st, one) "
        + HALVES
        + "p = Mul(x, cu) t = Mul(r, su) y = Add(p, t)"
    )
    program = graph(signature, body, ct=np.cos(full[0, :, :6]), st=np.sin(full[0, :, :6]), **AXES)
    same(program, RaiseRotary(), [{"x": normal(2, 4, 6, 8)}])
    assert operators(program) == {"RotaryEmbedding": 1}


def test_raises_tables_gathered_by_position() -> None:
    angles = np.outer(np.arange(16), [1.0, 0.3, 0.1, 0.01])
    full = np.concatenate([angles, angles], axis=-1).astype(np.float32)
    body = (
        HALVES
        + "cg = Gather(ct, ids) sg = Gather(st, ids) cos = Unsqueeze(cg, one) sin = Unsqueeze(sg, one) "
        + SUM
    )
    signature = "(float[b, 4, s, 8] x, int64[b, s] ids) => (float[b, 4, s, 8] y)"
    program = graph(signature, body, ct=np.cos(full), st=np.sin(full), **AXES)
    ids = np.array([[3, 1, 2], [0, 15, 7]])
    same(program, RaiseRotary(), [{"x": normal(2, 4, 3, 8), "ids": ids}])
    assert operators(program) == {"Gather": 2, "RotaryEmbedding": 1}


def test_leaves_tables_whose_halves_differ() -> None:
    body = (
        HALVES
        + "cg = Gather(ct, ids) sg = Gather(st, ids) cos = Unsqueeze(cg, one) sin = Unsqueeze(sg, one) "
        + SUM
    )
    signature = "(float[b, 4, s, 8] x, int64[b, s] ids) => (float[b, 4, s, 8] y)"
    program = graph(signature, body, ct=normal(16, 8), st=normal(16, 8), **AXES)
    before = print_program(program)
    result = RaiseRotary().run(program, PassContext())
    assert not result.changed and "not repeated in two halves" in reasons(result)
    assert print_program(program) == before


@pytest.mark.parametrize("inside", ["r", "t"])
def test_leaves_rotation_whose_inside_is_a_graph_output(inside: str) -> None:
    signature = SIGNATURE[:-1] + f", float[b, 4, s, 8] {inside})"
    program = graph(signature, HALVES + TABLES + SUM, **AXES)
    result = RaiseRotary().run(program, PassContext())
    assert not result.changed and f"{inside!r} inside the pattern is a graph output" in reasons(result)


def test_leaves_a_rotation_by_something_else_than_halves() -> None:
    program = graph(SIGNATURE, HALVES.replace("Neg(c)", "Abs(c)") + TABLES + SUM, **AXES)
    assert not RaiseRotary().run(program, PassContext()).changed


def test_raises_partial_rotary() -> None:
    signature = "(float[b, 4, s, 16] z, float[b, s, 4] angle) => (float[b, 4, s, 16] y)"
    body = "x = Slice(z, zero, eight, last, one) rest = Slice(z, eight, end, last, one) " + HALVES + TABLES
    body += "p = Mul(x, cos) t = Mul(r, sin) w = Add(p, t) y = Concat<axis=-1>(w, rest)"
    program = graph(signature, body, eight=[8], **AXES)
    made = [{"z": normal(2, 4, 5, 16), "angle": normal(2, 5, 4)}]
    before = evaluate(program.main, made[0])["y"]
    run_pass(RaiseRotary(), program)
    run_pass(RaisePartialRotary(), program)
    assert operators(program) == {"Cos": 1, "Sin": 1, "RotaryEmbedding": 1}
    np.testing.assert_allclose(evaluate(program.main, made[0])["y"], before, rtol=1e-5, atol=1e-5)
