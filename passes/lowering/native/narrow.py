"""Float weights in 16 bits: where that loses nothing, or where half precision was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ....compiler.dialect.linear import ACTIVATION_DTYPE
from ....compiler.errors import OptionError
from ....compiler.ir.provenance import add_passes
from ....compiler.ir.rewrite import Rewriter
from ....compiler.program import Program
from ....compiler.reference import Array
from ...base import Note, Pass, PassContext, PassResult
from .layer import Layer

DTYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}
_GREATEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class NativeWeights(Pass):
    """Store float weights of linear layers in 16 bits; their products are summed in float32.

    ``dtype``: ``auto`` narrows what is a bfloat16 or float16 in every element already, as in models that were
    stored so; ``fp16`` and ``bf16`` round; ``fp32`` leaves all as it is. ``bf16`` rounds activations too,
    where several rows are multiplied at once and the CPU multiplies bfloat16.
    """

    name: ClassVar[str] = "native-weights"
    optional: ClassVar[bool] = False
    dtype: str = "auto"

    def __post_init__(self) -> None:
        offered = ("auto", "fp32", *DTYPES)
        if self.dtype not in offered:
            fix = f"one of {', '.join(offered)}"
            raise OptionError(f"pass {self.name}: dtype", f"{self.dtype!r} is not offered", fix)

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every float32 weight of every entry; tables that share a weight's memory go on sharing it."""
        hits: list[Note] = []
        declined: list[Note] = []
        known: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol | str]] = {}
        for graph in program.graphs() if self.dtype != "fp32" else ():
            for value, readers in _weights(graph).items():
                tensor = value.const_value
                assert tensor is not None
                if id(tensor) not in known:  # the tensor is held too: an id is its own only while it lives
                    known[id(tensor)] = tensor, _narrowed(tensor, self.dtype)
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


def _narrowed(tensor: ir.TensorProtocol, dtype: str) -> ir.TensorProtocol | str:
    """``tensor`` in 16 bits, made when it is read; or why it stays as it is ("" if that is no news)."""
    rounds = dtype == "bf16"
    if dtype == "auto":
        array = tensor.numpy()
        names = [name for name in ("bf16", "fp16") if _is_exact(array, name)]
        if not names:
            return ""
        dtype = names[0]
    elif dtype == "fp16" and float(np.abs(tensor.numpy()).max(initial=0)) > _GREATEST:
        return f"it reaches beyond {_GREATEST:g}, where float16 ends"
    kind = DTYPES[dtype]
    made = ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype(kind.numpy()), dtype=kind),
        dtype=kind,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )
    if rounds:
        made.metadata_props[ACTIVATION_DTYPE] = kind.name
    return made


def _is_exact(array: Array, name: str) -> bool:
    """Whether every element is a number of the narrow format; a few are tried first."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for part in (flat[:4096], flat):
        if name == "bf16":
            exact = not (part.view(np.uint32) & 0xFFFF).any()
        else:
            with np.errstate(over="ignore"):
                exact = np.array_equal(part.astype(np.float16).astype(np.float32), part)
        if not exact:
            return False
    return True


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
        add_passes(made, [name])
