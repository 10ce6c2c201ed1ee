"""What a run must check of an entry's integer inputs before it begins."""

from __future__ import annotations

import onnx_ir as ir

from ...program import Decoding, dim_of
from .entry import EntryWriter

_SEEN_THROUGH = frozenset(
    ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Transpose", "Expand")
)


def checks_of(entry: EntryWriter, decoding: Decoding | None) -> list[str]:
    """Initializers of ``input_check``, one for every input that something is known of."""
    lines = []
    for index, value in enumerate(entry.inputs):
        if value.dtype not in (ir.DataType.INT64, ir.DataType.INT32):
            continue
        fields = _role(entry, value, decoding)
        if fields is None:
            rows = _table_rows(value)
            fields = None if rows is None else {"minimum": -rows, "maximum": rows - 1}
        if fields is not None:
            fields = {"maximum": -1, "add_size": -1, "maximum_size": -1} | fields
            text = ", ".join(f".{name} = {number}" for name, number in fields.items())
            lines.append(f"    {{.tensor = {index}, {text}}},")
    return lines


def _role(entry: EntryWriter, value: ir.Value, decoding: Decoding | None) -> dict[str, int] | None:
    """What an input's part in decoding demands."""
    if decoding is None:
        return None
    sizes = entry.sizes_of_entry.names

    def size(tensor: str, axis: int) -> int:
        shape = next((v.shape for v in entry.inputs if v.name == tensor), None)
        dim = None if shape is None else dim_of(shape[axis])
        return sizes.index(dim) if dim in sizes else -1

    if value.name == decoding.tokens:
        return {"minimum": 0, "maximum": decoding.vocabulary - 1}
    if value.name == decoding.lengths:
        capacity = size(decoding.state[0].input, 2) if decoding.state else -1
        return {
            "minimum": 0,
            "maximum": -1 if decoding.context is None else decoding.context,
            "add_size": size(decoding.tokens, 1),
            "maximum_size": capacity,
        }
    if value.name == decoding.select:
        return {"minimum": 0, "add": 1, "maximum_size": size(decoding.tokens, 1)}
    return None


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest table that ``value`` itself is the index of; None if it is of none."""
    found: list[int] = []
    pending = [value]
    while pending:
        for use in pending.pop().uses():
            node = use.node
            if node.op_type in _SEEN_THROUGH and use.idx == 0:
                pending.extend(node.outputs[:1])
            elif node.op_type == "Gather" and use.idx == 1:
                data = node.inputs[0]
                axis = node.attributes.get_int("axis", 0)
                size = None if data is None or data.shape is None else data.shape[axis]
                if isinstance(size, int):
                    found.append(size)
    return min(found, default=None)
