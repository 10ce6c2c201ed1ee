"""The main program under ONNX Runtime with weights as inputs: another weight needs no other session."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..compiler.closing import Closing
from ..compiler.draft import Draft
from ..compiler.errors import InternalError
from ..compiler.ir.constants import constant_tensor
from ..compiler.ir.rewrite import Rewriter
from ..compiler.options import Target
from ..compiler.program import Program
from ..compiler.reference import Array, Arrays
from ..passes.base import Pass, PassContext
from ..passes.lowering.onnxruntime import LOWER_CPU
from ..passes.moments import LayeredMoments
from ..passes.observers import run_pipeline
from ..passes.weight_uses import WeightUses, weight_uses
from .workbench import BACKENDS, SOURCE_BACKEND, Workbench

_INPUT, _TABLE, _SWITCH = "{}.probe", "{}.probe.table", "{}.probe.rounding"


def prepared(program: Program, passes: Sequence[Pass], context: PassContext | None = None) -> Program:
    """A copy of ``program``, its main entry alone, after ``passes``."""
    return reached(program, passes, PassContext() if context is None else context)[0]


def reached(program: Program, passes: Sequence[Pass], context: PassContext) -> tuple[Program, PassContext]:
    """The same, and the context as it reaches the pass behind ``passes``: with the moments they hand on."""
    copy = program.clone()
    copy.entries = {"main": copy.main}
    for _, result in run_pipeline(copy, passes, context):
        if result.moments:
            context = replace(context, moments=LayeredMoments(result.moments, context.moments or {}))
    return copy, context


def probed(
    program: Program, weights: Sequence[str] = (), values: Sequence[str] = (), switches: bool = False
) -> Program:
    """A copy whose nodes read ``weights`` from inputs, and whose outputs have ``values`` among them.

    Look-ups in a weight that is multiplied too have an input of their own. With ``switches`` an input of 0 or
    1 says whether the products with a weight round what they read to 8 bits, by row. Lowered for ONNX Runtime
    last, so that no rewrite stands on the weight's contents or takes the value away.
    """
    copy = program.clone()
    graph = copy.main.graph
    for name in weights:
        value = graph.initializers[name]
        uses = weight_uses(value)
        if switches and uses.multiplied:
            switch = ir.Value(
                name=_SWITCH.format(name), type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1])
            )
            graph.inputs.append(switch)
            for node in uses.multiplied:
                _round_by(switch, node)
        for pattern, readers in ((_INPUT, uses.products), (_TABLE, uses.look_ups)):
            if readers:
                given = ir.Value(name=pattern.format(name), type=value.type, shape=value.shape)
                graph.inputs.append(given)
                for node, index in readers:
                    node.replace_input_with(index, given)
        graph.initializers.pop(name)
    known = {value.name for value in graph.outputs}
    for node in graph:
        wanted = [value for value in node.outputs if value.name in values and value.name not in known]
        graph.outputs.extend(wanted)
    target, backend = Target("cpu"), BACKENDS[SOURCE_BACKEND]
    run_pipeline(copy, LOWER_CPU, PassContext(target, lambda node: backend.supports(node, target)))
    return copy


def _round_by(switch: ir.Value, node: ir.Node) -> None:
    """Let a product read x + switch · (x in 8 bits by row - x)."""
    at, x = Rewriter(node), node.inputs[0]
    if x is None or x.dtype != ir.DataType.FLOAT:
        return

    def number(value: float, name: str) -> ir.Value:
        return at.const(np.array([value], np.float32), name)

    last = at.const(np.array([-1], np.int64), "probe.last")
    greatest = at.op("ReduceMax", at.op("Abs", x), last, keepdims=1)
    step = at.op("Max", at.op("Div", greatest, number(127, "probe.codes")), number(1e-12, "probe.tiny"))
    codes = at.op("Mul", at.op("Round", at.op("Div", x, step)), step)
    made = at.op("Add", x, at.op("Mul", at.op("Sub", codes, x), switch))
    made.type, made.shape = x.type, x.shape
    node.replace_input_with(0, made)


@dataclass(frozen=True, slots=True)
class Swapped:
    """What stands for a weight in products and in look-ups, of its shape; None: the weight itself.

    ``rounds``: the products also round their activations to 8 bits.
    """

    multiplied: Array | None = None
    looked_up: Array | None = None
    rounds: bool = False


class Probe(Closing):
    """A session of ``probed(program, weights, values)``; a context manager.

    The weights as they are stay in memory once, as arrays; the session holds what else there is.
    Raises: CompileError if ONNX Runtime refuses the program.
    """

    __slots__ = ("_runner", "_stack", "_switches", "uses", "weights")

    def __init__(
        self,
        program: Program,
        weights: Sequence[str] = (),
        values: Sequence[str] = (),
        threads: int | None = None,
        switches: bool = False,
    ) -> None:
        self._switches = switches
        graph = program.main.graph
        self.weights: dict[str, ir.TensorProtocol] = {}
        self.uses: dict[str, WeightUses] = {}
        for name in weights:
            tensor = constant_tensor(graph.initializers[name])
            if tensor is None:
                raise InternalError(f"weight {name!r} has no contents")
            self.weights[name] = tensor
            self.uses[name] = weight_uses(graph.initializers[name])
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="miaotui-probe-"))
            draft = stack.enter_context(Draft(Path(folder, "probe")))
            bench = Workbench(draft, SOURCE_BACKEND, Target("cpu"))
            self._runner = stack.enter_context(
                bench.source(probed(program, weights, values, switches)).open(threads)
            )
            self._stack = stack.pop_all()

    def run(self, inputs: Arrays, swapped: Mapping[str, Swapped] | None = None) -> Arrays:
        """Outputs and tapped values by name, with some weights ``swapped``."""
        given = dict(inputs)
        for name, tensor in self.weights.items():
            other = Swapped() if swapped is None else swapped.get(name, Swapped())
            if self._switches and self.uses[name].multiplied:
                given[_SWITCH.format(name)] = np.array([other.rounds], np.float32)
            for pattern, readers, array in (
                (_INPUT, self.uses[name].products, other.multiplied),
                (_TABLE, self.uses[name].look_ups, other.looked_up),
            ):
                if readers:
                    given[pattern.format(name)] = tensor.numpy() if array is None else array
        return self._runner.run(given)

    def close(self) -> None:
        """Free the session and its files."""
        self._stack.close()
