"""16 bits where they hold: weights and activations halved, float32 kept where range or kernels demand it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.ir.provenance import merge_sources
from ...compiler.program import OPSET, Program
from ..base import Note, Pass, PassContext, PassResult
from .half import BF16, FP16, Format, half
from .interface import narrow_interface, narrow_state
from .keep import Plan, Planner, bounded

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class ConvertFp16(Pass):
    """Compute in float16 what its range allows; inputs and outputs of the model stay float32, state does not.

    ``keep``: operators, ``keep_nodes``: node names that stay float32. ``limit``: fraction of float16's
    range that a measured activation may fill. Masks such as -3.4e38 become -30000. ``io``: inputs and
    outputs of ``main`` are float16 too.
    """

    name: ClassVar[str] = "convert-fp16"
    optional: ClassVar[bool] = False
    form: ClassVar[Format] = FP16

    keep: tuple[str, ...] = ()
    keep_nodes: tuple[str, ...] = ()
    limit: float = 0.5
    io: bool = False

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Convert every entry; each node left in float32 is declined with its reason."""
        hits: list[Note] = []
        declined: list[Note] = []
        for model in program.entries.values():
            opsets = model.opset_imports

            def opset(node: ir.Node, opsets: dict[str, int] = opsets) -> int:
                return node.version or opsets.get(node.domain, OPSET if node.domain == "" else 1)

            ranges = context.ranges or {}
            plan = Planner(
                opset, context.supports, ranges, self.limit, self.keep, self.keep_nodes, self.form
            ).run(model)
            declined += [Note(node.name or node.op_type, why) for node, why in plan.kept.items()]
            turning = [node for node, at in plan.slots.items() if at.outputs]
            hits += [
                Note(node.name or node.op_type, f"{node.op_type} computes in {self.form.name}")
                for node in turning
            ]
            if turning:
                _Converter(model, plan, set(ranges), self.form).run()
        decoding = program.decoding
        if decoding is not None:
            hits += narrow_state(program.entries[decoding.entry], decoding.state, self.form)
        hits += narrow_interface(program.main, self.form) if self.io else []
        return PassResult(len(hits), tuple(hits), tuple(declined))


@dataclass(frozen=True)
class ConvertBf16(ConvertFp16):
    """Compute in bfloat16 what its 8 bits allow; inputs and outputs of the model stay float32.

    Its range is float32's, but integers above 256, sums and divisors lose too much: they stay. ``keep``,
    ``keep_nodes``, ``limit``, ``io`` as of convert-fp16.
    """

    name: ClassVar[str] = "convert-bf16"
    form: ClassVar[Format] = BF16


class _Converter:
    """Carries a plan out on one model, with one cast per value and direction."""

    __slots__ = ("_bounds", "_casts", "_halves", "_measured", "_outputs", "form", "model", "plan")

    def __init__(self, model: ir.Model, plan: Plan, measured: set[str], form: Format) -> None:
        self.model = model
        self.form = form
        self.plan = plan
        self._measured = measured
        self._casts: dict[tuple[ir.Value, str], ir.Value] = {}
        self._bounds: dict[float, ir.Value] = {}
        self._outputs: set[ir.Value] = set()
        self._halves = {node.outputs[i] for node, at in plan.slots.items() for i in at.outputs}

    def run(self) -> None:
        """Retype results, feed every reader the dtype it wants, give the graphs float32 outputs."""
        for value in self._halves:
            value.type = ir.TensorType(self.form.dtype)
        nodes = [node for graph in self.model.graphs() for node in graph]
        for node in nodes:
            at = self.plan.slots.get(node)
            if at is None:
                if node in self.plan.kept:
                    self._feed(node, range(len(node.inputs)), self.form.dtype)
            elif at.outputs:
                self._feed(node, at.inputs, FLOAT)
            elif len({read.dtype for i in at.inputs if (read := node.inputs[i]) is not None}) > 1:
                self._feed(
                    node, at.inputs, self.form.dtype
                )  # a comparison of both dtypes: float32 holds either
        for graph in list(self.model.graphs()):
            for index, value in enumerate(graph.outputs):
                if value in self._halves:
                    self._output(graph, index, value)
        self._drop_unused()

    def _feed(self, node: ir.Node, positions: Iterable[int], unwanted: ir.DataType) -> None:
        for index in positions:
            value = node.inputs[index]
            if (
                value is None
                or value.dtype != unwanted
                or (unwanted == self.form.dtype and value not in self._halves)
            ):
                continue
            node.replace_input_with(
                index, self._single(value) if unwanted == self.form.dtype else self._half(value, node)
            )

    def _half(self, value: ir.Value, reader: ir.Node) -> ir.Value:
        bounds = reader.op_type in {"Clip", "Max", "Min"}
        key = (value, "bounds" if bounds else "half")
        if key not in self._casts:
            tensor = constant_tensor(value)
            if tensor is not None:
                self._casts[key] = self._constant(value, tensor, bounds)
            else:
                self._casts[key] = self._cast(
                    self._saturated(value), self.form.dtype, f"{value.name}.{self.form.tag}"
                )
        return self._casts[key]

    def _constant(self, value: ir.Value, tensor: ir.TensorProtocol, bounds: bool) -> ir.Value:
        name = f"{value.name}.{self.form.tag}{'.bounds' if bounds else ''}"
        graph = self._graph_of(value)
        made = ir.Value(
            name=name,
            type=ir.TensorType(self.form.dtype),
            shape=value.shape,
            const_value=half(tensor, name, bounds=bounds, form=self.form),
        )
        graph.register_initializer(made)
        return made

    def _saturated(self, value: ir.Value) -> ir.Value:
        """Clamp what may lie outside float16: an infinite mask makes NaN of a row that is masked whole."""
        producer = value.producer()
        foreign = producer is None or value in self.plan.integers
        if not foreign or value.name in self._measured - _masks(self.plan) or bounded(value):
            return value
        low = self.form.mask if self.plan.integers.get(value) else -self.form.greatest
        node = ir.node("Clip", [value, self._bound(low), self._bound(self.form.greatest)])
        return self._insert(node, value, FLOAT, f"{value.name}.clamped")

    def _bound(self, limit: float) -> ir.Value:
        if limit not in self._bounds:
            kind = "greatest" if limit > 0 else "least" if limit == -self.form.greatest else "mask"
            name = f"{self.form.tag}.{kind}"
            tensor = ir.tensor(np.float32(limit), name=name)
            value = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(()), const_value=tensor)
            self.model.graph.register_initializer(value)
            self._bounds[limit] = value
        return self._bounds[limit]

    def _single(self, value: ir.Value) -> ir.Value:
        if (value, "single") not in self._casts:
            self._casts[value, "single"] = self._cast(value, FLOAT, f"{value.name}.fp32")
        return self._casts[value, "single"]

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        return self._insert(ir.node("Cast", [value], {"to": dtype}), value, dtype, name)

    def _insert(self, node: ir.Node, after: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """Put ``node`` right behind the producer of ``after``, where every reader can see it."""
        producer = after.producer()
        graph = self._graph_of(after)
        if producer is not None:
            graph.insert_after(producer, node)
            merge_sources(node, [producer])
        elif len(graph):
            graph.insert_before(graph[0], node)
        else:
            graph.append(node)
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), after.shape
        return made

    def _output(self, graph: ir.Graph | ir.Function, index: int, value: ir.Value) -> None:
        """The graph's output keeps its name and dtype; the float16 result behind it gets a new name."""
        name = value.name
        single = self._single(value)
        graph.outputs[index] = single
        if single not in self._outputs:  # a value may be several outputs
            self._outputs.add(single)
            value.name, single.name = f"{name}.{self.form.tag}", name

    def _graph_of(self, value: ir.Value) -> ir.Graph:
        graph = value.graph
        return graph if isinstance(graph, ir.Graph) else self.model.graph

    def _drop_unused(self) -> None:
        for value, _ in self._casts:
            graph = self._graph_of(value)
            unused = not value.uses() and not value.is_graph_output() and not value.is_graph_input()
            if value.is_initializer() and unused and value.name is not None:
                graph.initializers.pop(value.name, None)


def _masks(plan: Plan) -> set[str | None]:
    return {value.name for value, mask in plan.integers.items() if mask}
