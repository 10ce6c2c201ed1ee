"""Float weights in 16 bits: where that loses nothing, or where half precision was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.dialect.linear import ACTIVATION_DTYPE
from ....compiler.errors import OptionError
from ....compiler.ir.constants import STORED, constant_tensor
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import HALVES, Program
from ...base import Note, Pass, PassContext, PassResult
from ...precision.half import BF16, FP16, is_exact
from .layer import Layer

FORMATS = {"fp16": FP16, "bf16": BF16}

_LEAST = 4096
"""Elements from which on a table that is only looked up counts as a weight."""


@dataclass(frozen=True)
class NativeWeights(Pass):
    """Store float weights of linear layers in 16 bits; their products are summed in float32.

    ``dtype``: ``auto`` narrows what is a bfloat16 or float16 in every element already, as in models that were
    stored so, or that quantize-weights rounded so, tables among them; ``fp16`` and ``bf16`` round; ``fp32``
    leaves all as it is. ``bf16`` rounds activations too, where several rows are multiplied at once and the
    CPU multiplies bfloat16.
    """

    name: ClassVar[str] = "native-weights"
    optional: ClassVar[bool] = False
    dtype: str = "auto"

    def __post_init__(self) -> None:
        offered = ("auto", "fp32", *FORMATS)
        if self.dtype not in offered:
            fix = f"one of {', '.join(offered)}"
            raise OptionError(f"pass {self.name}: dtype", f"{self.dtype!r} is not offered", fix)

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every float32 weight of every entry; tables that share a weight's memory go on sharing it."""
        hits: list[Note] = []
        declined: list[Note] = []
        known: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol | str]] = {}
        rounded = any(model.metadata_props.get(HALVES) for model in program.entries.values())
        for graph in program.graphs() if self.dtype != "fp32" else ():
            weights = _weights(graph)
            tables = _tables(graph, weights) if rounded else {}
            for value, readers in (weights | tables).items():
                tensor = value.const_value
                assert tensor is not None
                if id(tensor) not in known:  # the tensor is held too: an id is its own only while it lives
                    known[id(tensor)] = tensor, _narrowed(tensor, "auto" if value in tables else self.dtype)
                narrow = known[id(tensor)][1]
                if isinstance(narrow, str):
                    declined += [Note(str(value.name), narrow)] if narrow else []
                    continue
                _replace(value, readers, narrow, self.name)
                hits.append(Note(str(value.name), f"is stored in {narrow.dtype.name}"))
        return PassResult(len(hits), tuple(hits), tuple(declined))


def _weights(graph: ir.Graph | ir.Function) -> dict[ir.Value, list[ir.Node]]:
    """float32 initializers that linear layers multiply with, and these layers and look-ups in their order."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        layer = Layer.of(node)
        for weight, _ in () if layer is None else layer.parts:
            if weight.is_initializer() and weight.dtype == ir.DataType.FLOAT and not weight.is_graph_input():
                found.setdefault(weight, [])
    for node in graph:
        for value in dict.fromkeys(node.inputs):
            looked_up = node.op_type == "Gather" and value is node.inputs[0]
            if value in found and (Layer.of(node) is not None or looked_up):
                found[value].append(node)
    return found


def _tables(
    graph: ir.Graph | ir.Function, weights: Mapping[ir.Value, list[ir.Node]]
) -> dict[ir.Value, list[ir.Node]]:
    """float32 matrices besides ``weights`` of which rows are looked up, nothing else; with these look-ups."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in graph:
        table = node.inputs[0] if node.op_type == "Gather" and node.domain == "" else None
        tensor = None if table in weights else constant_tensor(table)
        if table is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or len(tensor.shape) != 2:
            continue
        uses = [(use.node.op_type, use.idx, use.node.attributes.get_int("axis", 0)) for use in table.uses()]
        is_whole = table.is_initializer() and not table.is_graph_output() and tensor.size >= _LEAST
        if is_whole and set(uses) == {("Gather", 0, 0)}:
            found.setdefault(table, []).append(node)
    return found


def _narrowed(tensor: ir.TensorProtocol, dtype: str) -> ir.TensorProtocol | str:
    """``tensor`` in 16 bits, made when it is read; or why it stays as it is ("" if that is no news)."""
    rounds = dtype == "bf16"
    if dtype == "auto":
        array = tensor.numpy()
        names = [name for name in ("bf16", "fp16") if is_exact(array, FORMATS[name])]
        if not names:
            return ""
        dtype = names[0]
    elif dtype == "fp16" and float(np.abs(tensor.numpy()).max(initial=0)) > FP16.greatest:
        return f"it reaches beyond {FP16.greatest:g}, where float16 ends"
    kind = FORMATS[dtype].dtype
    made = ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(kind.numpy()), dtype=kind),
        dtype=kind,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )
    if rounds:
        made.metadata_props[ACTIVATION_DTYPE] = kind.name
    return made


def _replace(value: ir.Value, readers: list[ir.Node], narrow: ir.TensorProtocol, name: str) -> None:
    at = Rewriter(readers[0])
    stored = at.const(narrow, f"{value.name}.{narrow.dtype.name.lower()}")
    wide = at.op("Cast", stored, to=ir.DataType.FLOAT.value)
    wide.type, wide.shape = value.type, value.shape
    for node in readers:
        for index, operand in enumerate(node.inputs):
            if operand is value:
                node.replace_input_with(index, wide)
    if not value.uses() and not value.is_graph_output():
        assert isinstance(at.graph, ir.Graph)
        del at.graph.initializers[str(value.name)]
    for made in at.made:
        made.metadata_props[STORED] = narrow.dtype.name
        add_passes(made, [name])
