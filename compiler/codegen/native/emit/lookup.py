"""Emitting Gather from an embedding that lies packed: the output layer reads the same memory."""

from __future__ import annotations

import onnx_ir as ir

from .base import Entry, Operator, bare, times
from .gathers import gather, reason
from .views import required


def _gather(node: ir.Node, entry: Entry) -> None:
    data = required(node, 0)
    if node.attributes.get_int("axis", 0) == 0 and entry.is_packed(data):
        _unpacked(node, entry)
    else:
        gather(node, entry)


def _unpacked(node: ir.Node, entry: Entry) -> None:
    indices = entry.contiguous(required(node, 1))
    where, weight = entry.packed([[required(node, 0)]])
    y = entry.new(node.outputs[0])
    facts = f"{{{weight.rows}, {weight.format}, {weight.group}}}"
    function = entry.function(
        f"embed_{weight.rows}x{weight.columns}",
        f"""static const linear_part NAME_table = {facts};

static void NAME(worker *w, call *run, int64_t count, const int64_t *ids, const unsigned char *table,
                 float *y)
{{
    for (range r = share(w, count, 1); r.begin < r.end; r.begin++) {{
        const int64_t row = checked(run, ids[r.begin], {weight.rows}, "an id is outside of its embedding");
        if (row >= 0)
            unpack_row(&NAME_table, {weight.columns}, table, row, y + r.begin * {weight.columns});
    }}
}}
""",
    )
    count = times(*indices.shape)
    entry.step(node, f"{function}(w, run, {bare(count)}, {indices.pointer}, {where}, {y.pointer});")


OPERATORS = {"Gather": Operator(_gather, reason)}
