"""Weights stored in 16 bits for backends that compute in float32: half the file, no cast back and forth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.constants import STORED, constant_tensor
from ...compiler.ir.provenance import add_passes
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ..base import Note, Pass, PassContext, PassResult
from .half import BF16, FP16, half, loss
from .interface import narrow_interface

FORMATS = {"fp16": FP16, "bf16": BF16}
NOTE = "the CPU has no kernels of ONNX Runtime for {}: weights are stored in it, all is computed in float32"


@dataclass(frozen=True)
class StoreWeights(Pass):
    """Store float32 weights in 16 bits, with a Cast that ONNX Runtime folds when it loads the model.

    ONNX Runtime multiplies neither float16 nor bfloat16 on CPUs: it would cast every operand there and back.
    ``dtype``: ``fp16`` or ``bf16``. ``least``: elements from which on a tensor counts. Weights that would
    lose more than rounding costs, or leave the format's range, stay float32. ``io``: inputs and outputs of
    ``main`` are of the format too.
    """

    name: ClassVar[str] = "store-weights"
    optional: ClassVar[bool] = False
    dtype: str = "fp16"
    least: int = 1024
    io: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in FORMATS:
            fix = f"one of {', '.join(FORMATS)}"
            raise OptionError(f"pass {self.name}: dtype", f"{self.dtype!r} is not offered", fix)

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every float32 initializer of some size in every graph; entries go on sharing theirs."""
        hits: list[Note] = []
        declined: list[Note] = []
        form = FORMATS[self.dtype]
        known: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol | str]] = {}
        for model in program.entries.values():
            for value, tensor, _ in storable(model.graph, self.least):
                name = str(value.name)
                if id(tensor) not in known:  # the tensor is held too: an id is its own only while it lives
                    why = loss(tensor, saturate=False, divides=False, form=form)
                    known[id(tensor)] = tensor, why or half(tensor, name, form=form)
                narrow = known[id(tensor)][1]
                if isinstance(narrow, str):
                    declined.append(Note(name, narrow))
                    continue
                store(value, narrow, f"{name}.{self.dtype}", self.name)
                hits.append(Note(name, f"is stored in {form.name}, computed with in float32"))
        if hits:
            declined.append(Note(program.main.graph.name or "main", NOTE.format(form.name)))
        hits += narrow_interface(program.main, form) if self.io else []
        return PassResult(len(hits), tuple(hits), tuple(declined))


def storable(graph: ir.Graph, least: int) -> Iterator[tuple[ir.Value, ir.TensorProtocol, frozenset[ir.Node]]]:
    """float32 initializers of ``least`` elements that no subgraph reads, and the nodes that do."""
    for value in tuple(graph.initializers.values()):
        tensor = constant_tensor(value)
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < least:
            continue
        readers = frozenset(use.node for use in value.uses())
        inner = any(node.graph is not graph for node in readers)
        if readers and not inner and not value.is_graph_output():
            yield value, tensor, readers


def store(value: ir.Value, narrow: ir.TensorProtocol, name: str, step: str) -> None:
    """Let all that reads ``value``, an initializer, read ``narrow`` widened; the pass ``step`` did it."""
    readers = {use.node for use in value.uses()}
    graph = next(iter(readers)).graph
    assert isinstance(graph, ir.Graph)
    at = Rewriter(next(node for node in graph if node in readers))
    wide = at.op("Cast", at.const(narrow, name), to=ir.DataType.FLOAT.value)
    wide.type, wide.shape = value.type, value.shape
    for use in tuple(value.uses()):
        use.node.replace_input_with(use.idx, wide)
    graph.initializers.pop(str(value.name), None)
    for made in at.made:
        made.metadata_props[STORED] = narrow.dtype.name
        add_passes(made, [step])
