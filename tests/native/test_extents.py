"""Sizes that follow from what an input holds: found where the runtime bounds them, and nowhere else."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.native.extents import Extent, extents
from miaotui.compiler.codegen.native.sizes import Sizes
from miaotui.compiler.dialect import MIAOTUI
from miaotui.compiler.ir.builder import FLOAT, INT64, Builder
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.lowering.native import NativeKeys


def over_a_cache(counted: str = "query", start: int = 0, cached: bool = True) -> ir.Graph:
    """Attention over a cache, with a bias by the distance of keys up to the longest row's last."""
    b = Builder()
    shape = ("batch", 2, "tokens", 8)
    query, key, value = (b.input(name, shape) for name in ("query", "key", "value"))
    lengths = b.input("lengths", ("batch",), INT64)
    past = [b.input(name, ("batch", 2, "capacity", 8)) for name in ("past_key", "past_value")]
    tokens = b.op("Shape", b.graph.inputs[0] if counted == "query" else past[0], start=2, end=3)
    total = b.op("Squeeze", b.op("Add", tokens, b.op("ReduceMax", lengths)))
    places = b.op("Range", b.weight("from", np.int64(start)), total, b.weight("one", np.int64(1)))
    bias = b.op("Reshape", b.op("Cast", places, to=FLOAT.value), b.weight("shape", [1, 1, 1, -1]))
    held = [*past, lengths] if cached else [None, None, None]
    y, *_ = b.ops("FusedAttention", query, key, value, *held, bias, outputs=3, domain=MIAOTUI)
    b.output(y, "y")
    program = Program({"main": b.model()})
    NativeKeys().run(program, PassContext())
    return program.main.graph


def test_the_keys_of_the_longest_row_are_as_many_as_the_cache_holds_at_most() -> None:
    graph = over_a_cache()
    assert extents(graph) == [Extent("keys", 3, "batch", "tokens", "capacity")]
    assert Sizes.of(graph).size("keys") == "keys"


@pytest.mark.parametrize("graph", [over_a_cache("past"), over_a_cache(start=1), over_a_cache(cached=False)])
def test_what_nothing_bounds_is_unknown(graph: ir.Graph) -> None:
    assert extents(graph) == []
    assert Sizes.of(graph).size("keys") is None
