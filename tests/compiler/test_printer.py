"""Canonical text: golden, complete, and the same for the same graph."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.builder import BOOL, Builder
from miaotui.compiler.ir.printer import print_graph, print_program
from miaotui.compiler.program import DimRange, Program


def example() -> Program:
    b = Builder()
    x, c = b.input("x", ("batch", 4)), b.input("c", (), BOOL)
    y, rest = b.ops("Split", x, b.weight("sizes", np.asarray([1, 3])), outputs=2, axis=1, name="parts")
    then, other = Builder(), Builder()
    then.output(then.op("LeakyRelu", y, alpha=0.1, name="then"))
    other.output(other.op("Identity", y, name="else"))
    b.output(b.op("If", c, then_branch=then.graph, else_branch=other.graph, name="y"))
    b.output(
        b.op("Clip", b.op("MatMul", rest, b.weight("w", np.ones((3, 5))), name="m"), None, None, name="z")
    )
    return b.program(batch=DimRange(1, 8))


GOLDEN = """\
dims batch=1..8
entry main { opset ai.onnx 23 }
  inputs %x: float32[batch, 4], %c: bool[]
  outputs %y, %z
  %sizes: int64[2] = [1, 3]
  %w: float32[3, 5]
  %parts_0: float32[batch, 1], %parts_1: float32[batch, 3] = Split(%x, %sizes) {axis=1}
  %y: float32[batch, 1] = If(%c) {else_branch=<graph>, then_branch=<graph>}
    else_branch:
      inputs -
      outputs %else
      %else: float32[batch, 1] = Identity(%parts_0)
    then_branch:
      inputs -
      outputs %then
      %then: float32[batch, 1] = LeakyRelu(%parts_0) {alpha=0.1}
  %m: float32[batch, 5] = MatMul(%parts_1, %w)
  %z: float32[batch, 5] = Clip(%m, -, -)
"""


def test_prints_the_golden_text() -> None:
    assert print_program(example()) == GOLDEN


def test_a_clone_prints_the_same_text() -> None:
    program = example()
    assert print_program(program.clone()) == print_program(program)


def test_attribute_order_does_not_matter() -> None:
    texts = set()
    for names in (("alpha", "beta"), ("beta", "alpha")):
        x = ir.val("x", ir.DataType.FLOAT, [2])
        node = ir.node("HardSigmoid", [x], dict.fromkeys(names, 0.5), outputs=[ir.val("y")])
        texts.add(print_graph(ir.Graph([x], node.outputs, nodes=[node])))
    assert len(texts) == 1


def test_sources_are_a_trailing_comment() -> None:
    assert "%m: float32[batch, 5] = MatMul(%parts_1, %w)  # test m (MatMul)\n" in print_program(
        example(), True
    )


def test_another_process_prints_the_same_text() -> None:
    folder = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); from test_printer import *"
    code += "; print(print_program(example()))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == GOLDEN + "\n"


def test_values_of_every_type_print() -> None:
    b = Builder()
    x = b.input("x", None, ir.DataType.BFLOAT16)
    b.output(b.op("SequenceConstruct", x, name="s"))
    for name, array in {"flags": np.asarray([True, False]), "half": np.asarray([0.5], np.float16)}.items():
        b.weight(name, array)
    text = print_graph(b.model().graph)
    assert "%s: seq(bfloat16[...]) = SequenceConstruct(%x)" in text
    assert "%flags: bool[2] = [true, false]" in text
    assert "%half: float16[1] = [0.5]" in text
