"""The number format of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ....compiler.dialect import MIAOTUI
from ....compiler.errors import OptionError
from ....compiler.program import Program
from ...base import Note, Pass, PassContext, PassResult
from .layer import Layer
from .weights import is_stored_wide

DTYPES = {"fp32": ir.DataType.FLOAT, "fp16": ir.DataType.FLOAT16, "int8": ir.DataType.INT8}
SCALE = 4
"""Bytes behind the codes of an int8 row: their float32 scale."""


@dataclass(frozen=True)
class NativeCache(Pass):
    """Keep the KV cache in fp32, fp16 or int8 with a scale per head and token.

    ``dtype``: ``auto`` is fp32 where all weights are fp32, else fp16. Half the bytes are half the time of
    attention over a long context.
    """

    name: ClassVar[str] = "native-cache"
    optional: ClassVar[bool] = False
    dtype: str = "auto"

    def __post_init__(self) -> None:
        if self.dtype != "auto" and self.dtype not in DTYPES:
            offered = ", ".join(("auto", *DTYPES))
            raise OptionError(
                f"pass {self.name}: dtype", f"{self.dtype!r} is not offered", f"one of {offered}"
            )

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Change the dtype of all state inputs and outputs, if FusedAttention alone reads and writes them."""
        if program.decoding is None or not program.decoding.state:
            note = Note("main", f"the program keeps no KV cache that could be in {self.dtype}")
            return PassResult() if self.dtype == "auto" else PassResult(declined=(note,))
        graph = program.entries[program.decoding.entry].graph
        name = self.dtype if self.dtype != "auto" else "fp32" if _is_wide(graph) else "fp16"
        values = {value.name: value for value in (*graph.inputs, *graph.outputs)}
        pairs = [(values[t.input], values[t.output]) for t in program.decoding.state]
        if all(past.dtype == DTYPES[name] for past, _ in pairs):
            return PassResult()
        for past, present in pairs:
            if past.dtype != ir.DataType.FLOAT or not _is_attention_s(past, present):
                note = Note(str(past.name), "it is not attention alone that reads and writes it as float32")
                return PassResult(declined=(note,))
        for value in (value for pair in pairs for value in pair):
            value.type = ir.TensorType(DTYPES[name])
            if name == "int8" and value.shape is not None:
                *others, width = value.shape
                value.shape = ir.Shape([*others, width + SCALE if isinstance(width, int) else width])
        hits = tuple(Note(str(past.name), f"is kept in {name}") for past, _ in pairs)
        return PassResult(len(hits), hits)


def _is_wide(graph: ir.Graph) -> bool:
    layers = [layer for layer in map(Layer.of, graph) if layer is not None]
    return all(is_stored_wide(weight) for layer in layers for weight, _ in layer.parts)


def _is_attention_s(past: ir.Value, present: ir.Value) -> bool:
    node = present.producer()
    if node is None or (node.domain, node.op_type) != (MIAOTUI, "FusedAttention") or present.uses():
        return False
    return [use.node for use in past.uses()] == [node] and not past.is_graph_output()
