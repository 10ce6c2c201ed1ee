"""Products of matrices that are both computed when run: MatMul and Gemm that no Linear took."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from ..views import transposed
from .base import Entry, Operator, Size, View, row_major
from .expressions import FLOAT, literal
from .loops import aligned, head_of, names_of, offset, over_rows, read
from .views import input_of, required

ROWS = 4
"""``MATMUL_ROWS`` of kernels/matmul.h."""


def _matmul(node: ir.Node, entry: Entry) -> None:
    a, b = entry.view(required(node, 0)), entry.view(required(node, 1))
    target = entry.new(node.outputs[0])
    shape = target.shape
    if len(a.shape) == 1:
        a = replace(a, shape=(1, *a.shape), strides=(0, *a.strides))
        shape = (*shape[:-1], 1, *shape[-1:]) if len(b.shape) > 1 else (1, *shape)
    if len(b.shape) == 1:
        b = replace(b, shape=(*b.shape, 1), strides=(*b.strides, 0))
        shape = (*shape, 1)
    entry.step(node, _product(a, b, View(target.pointer, target.ctype, shape, row_major(shape)), ()))


def _gemm(node: ir.Node, entry: Entry) -> None:
    a, b = (entry.view(required(node, place)) for place in (0, 1))
    if node.attributes.get_int("transA", 0):
        a = transposed(a, (1, 0))
    if node.attributes.get_int("transB", 0):
        b = transposed(b, (1, 0))
    alpha, beta = (node.attributes.get_float(name, 1.0) for name in ("alpha", "beta"))
    third = input_of(node, 2)
    added = None if third is None or beta == 0 else read(entry.view(third), entry.sizes(node.outputs[0]))
    target = entry.new(node.outputs[0])
    scaled = "y[j]" if alpha == 1 else f"{literal(alpha, FLOAT)} * y[j]"
    lines: list[str] = []
    if added is not None or alpha != 1:
        pointers = []
        if added is not None:
            pointers = [f"const float *x = {added.view.pointer}{offset(['r'], added.strides[:1])};"]
            term = f"x[{offset(['j'], added.strides[1:])[3:] or 0}]"
            scaled += f" + {term}" if beta == 1 else f" + {literal(beta, FLOAT)} * {term}"
        lines = [
            "for (int64_t r = first; r < first + rows; r++) {",
            f"    float *y = {target.pointer} + r * {target.strides[0]};",
            *(f"    {line}" for line in pointers),
            f"    {head_of('j', target.shape[1])}",
            f"        y[j] = {scaled};",
            "}",
        ]
    entry.step(node, _product(a, b, target, lines))


def _product(a: View, b: View, y: View, behind: list[str] | tuple[()]) -> str:
    """C for y[..., rows, columns] = a b, block by block of rows; then the lines ``behind`` for each block."""
    rows, columns = y.shape[-2:]
    outer = y.shape[:-2]
    blocks: Size = -(-rows // ROWS) if isinstance(rows, int) else f"(({rows} + {ROWS - 1}) / {ROWS})"
    names = names_of(len(outer) + 1)
    block = names[-1]
    first = "0" if blocks == 1 else f"{block} * {ROWS}"

    def start(view: View, by_row: Size) -> str:
        outside = View(view.pointer, view.ctype, view.shape[:-2], view.strides[:-2])
        steps = aligned(outside, outer)
        return view.pointer + offset(names[:-1], steps) + offset(["first"], [by_row])

    steps = f"{{{a.strides[-2]}, {a.strides[-1]}, {b.strides[-2]}, {b.strides[-1]}, {y.strides[-2]}}}"
    lines = [
        f"int64_t first = {first}, rows = min64({ROWS}, {rows} - first);",
        f"matmul_steps at = {steps};",
        f"matmul_block({start(a, a.strides[-2])}, {start(b, 0)}, {start(y, y.strides[-2])}, at,",
        f"             rows, {columns}, {a.shape[-1]});",
        *behind,
    ]
    return over_rows([*outer, blocks], lines, 1)


def _reason(node: ir.Node) -> str | None:
    if any(v is not None and (v.dtype != FLOAT or v.shape is None) for v in node.inputs):
        return "it is not of floats, or a rank is not known"
    return None


OPERATORS = {"MatMul": Operator(_matmul, _reason), "Gemm": Operator(_gemm, _reason)}
