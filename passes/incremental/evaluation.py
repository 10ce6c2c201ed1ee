"""Values that depend only on sizes, evaluated: the nodes behind them cut out and run by the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ...compiler.errors import CompileError
from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.ir.evaluate import evaluate
from ...compiler.program import dim_of
from ...compiler.reference import Array
from ..base import decline
from .values import Values

FAILURES = (CompileError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, AssertionError)
"""What reference evaluation raises: no reference semantics, or numpy's objections."""

LARGEST = 1 << 18
"""Longest sequence at which rows are evaluated: covers windows up to half of it."""

_MOST_NODES = 1000


class Cut:
    """The nodes behind ``outputs``, up to the values for which ``leaf`` is true, to be run on arrays."""

    __slots__ = ("constants", "leaves", "nodes", "opset", "outputs")

    def __init__(
        self, outputs: Sequence[ir.Value], leaf: Callable[[ir.Value], bool], opsets: Mapping[str, int]
    ) -> None:
        self.outputs = list(outputs)
        self.opset = dict(opsets)
        nodes: dict[ir.Node, None] = {}
        leaves: dict[ir.Value, None] = {}
        constants: dict[ir.Value, None] = {}
        done = set[ir.Value]()
        pending = [(value, False) for value in reversed(self.outputs)]
        while pending:
            value, finished = pending.pop()
            node = value.producer()
            if finished:
                assert node is not None
                nodes[node] = None
                continue
            if value in done:
                continue
            done.add(value)
            if leaf(value):
                leaves[value] = None
            elif constant_tensor(value) is not None:
                constants[value] = None
            elif node is None:
                decline(f"{value.name} is an input")
            else:
                done.update(node.outputs)
                pending.append((value, True))
                pending.extend((v, False) for v in reversed(node.inputs) if v is not None)
            if len(done) > _MOST_NODES:
                decline(f"{self.outputs[0].name} takes more than {_MOST_NODES} nodes")
        self.nodes, self.leaves, self.constants = tuple(nodes), tuple(leaves), tuple(constants)

    def run(self, feeds: Mapping[ir.Value, Array]) -> list[Array]:
        """The arrays of ``outputs`` where the leaves are ``feeds``. Raises: one of ``FAILURES``."""
        swap: dict[ir.Value, ir.Value] = {}
        inputs, arrays = [], {}
        for index, value in enumerate(self.leaves):
            swap[value] = ir.val(f"leaf_{index}", value.dtype, [None] * feeds[value].ndim)
            inputs.append(swap[value])
            arrays[f"leaf_{index}"] = feeds[value]
        initializers = []
        for index, value in enumerate(self.constants):
            swap[value] = ir.val(f"constant_{index}", const_value=constant_tensor(value))
            initializers.append(swap[value])
        nodes = []
        for node in self.nodes:
            operands = [None if v is None else swap[v] for v in node.inputs]
            copy = ir.Node(
                node.domain,
                node.op_type,
                operands,
                node.attributes.values(),
                num_outputs=len(node.outputs),
            )
            swap.update(zip(node.outputs, copy.outputs, strict=True))
            nodes.append(copy)
        ends = [ir.node("Identity", [swap[v]]) for v in self.outputs]
        for index, end in enumerate(ends):
            end.outputs[0].name = f"result_{index}"
        graph = ir.Graph(
            inputs,
            [end.outputs[0] for end in ends],
            nodes=[*nodes, *ends],
            initializers=initializers,
            opset_imports=self.opset,
            name="cut",
        )
        found = evaluate(ir.Model(graph, ir_version=10), arrays)
        return [found[f"result_{index}"] for index in range(len(ends))]

    def integers(self) -> set[int]:
        """Integers among its small constants: windows, tables, bounds that a size may cross."""
        found: set[int] = set()
        for value in self.constants:
            array = constant(value, limit=64)
            if array is not None and array.dtype.kind in "iuf":
                finite = (
                    array[np.isfinite(array)].ravel().tolist() if array.dtype.kind == "f" else array.ravel()
                )
                found |= {abs(int(n)) for n in finite if abs(n) < 1 << 31}
            tensor = constant_tensor(value)
            if tensor is not None and tensor.size > 64:
                found |= set(tensor.shape.numpy())
        return found


class SizedEvaluator:
    """Evaluates values of the whole-sequence graph that depend on batch and sequence length alone.

    Inputs of an encoder are random zeros and ones of ``source`` places.
    """

    __slots__ = ("_cuts", "_known", "source", "values")

    def __init__(self, values: Values) -> None:
        self.values, self.source = values, 5
        self._cuts: dict[ir.Value, Cut] = {}
        self._known: dict[tuple[ir.Value, int, int], Array] = {}

    def cut(self, value: ir.Value) -> Cut:
        """The nodes behind ``value``."""
        if value not in self._cuts:
            self._cuts[value] = Cut([value], self._is_leaf, self.values.graph.opset_imports)
        return self._cuts[value]

    def at(self, value: ir.Value, batch: int, sequence: int) -> Array:
        """The array at these sizes. Raises: NoMatch, or one of ``FAILURES``."""
        key = value, batch, sequence
        if key not in self._known:
            cut = self.cut(value)
            feeds = {leaf: self._leaf(leaf, batch, sequence) for leaf in cut.leaves}
            (result,) = cut.run(feeds)
            if result.size > 1 << 16:
                return result
            self._known[key] = result
        return self._known[key]

    def shape(self, value: ir.Value, batch: int = 1, sequence: int = 7) -> tuple[int, ...]:
        """The shape at these sizes: one that a wrong guess of a symbol would show."""
        try:
            return tuple(self.at(value, batch, sequence).shape)
        except FAILURES as error:
            decline(f"{value.name} can't be evaluated ({type(error).__name__})")

    def _is_leaf(self, value: ir.Value) -> bool:
        node = value.producer()
        if value in self.values.substituted or value in self.values.sources:
            return True
        if node is None or node.op_type != "Shape" or node.domain != "":
            return False
        return node.inputs[0] in self.values.data

    def _leaf(self, value: ir.Value, batch: int, sequence: int) -> Array:
        node, values = value.producer(), self.values
        if node is None:
            assert value.dtype is not None
            if value in values.sources:
                return self._source(value, batch)
            whole = (batch, sequence)
            array = np.ones(whole) if value in values.masks else np.broadcast_to(np.arange(sequence), whole)
            return array.astype(value.dtype.numpy())
        sizes = [size_of(d, values, batch, sequence, self.source) for d in shape_dims(node)]
        return np.array(sizes, np.int64)

    def _source(self, value: ir.Value, batch: int) -> Array:
        """Zeros and ones, the first place of every row a one."""
        assert value.dtype is not None and value.shape is not None
        sizes = [batch, *(d if isinstance(d, int) else self.source for d in value.shape[1:])]
        array = np.random.default_rng(0).integers(0, 2, sizes)
        array[:, :1] = 1
        return array.astype(value.dtype.numpy())


def shape_dims(node: ir.Node) -> Sequence[int | ir.SymbolicDim]:
    """The dimensions that a Shape node gives. Raises: NoMatch if they are not known."""
    x = node.inputs[0]
    if x is None or x.shape is None:
        decline(f"the shape of {None if x is None else x.name} is not known")
    start, end = node.attributes.get_int("start", 0), node.attributes.get("end")
    return list(x.shape)[start : None if end is None else end.as_int()]


def size_of(dim: int | ir.SymbolicDim, values: Values, batch: int, sequence: int, source: int) -> int:
    """A dimension as a number; products of sizes and symbols are understood. Raises: NoMatch."""
    result = 1
    name = dim_of(dim)
    for part in name.split("*") if isinstance(name, str) else [name]:
        if isinstance(part, int) or (part is not None and part.isdigit()):
            result *= int(part)
        elif part == values.sequence:
            result *= sequence
        elif part is not None and part == values.batch:
            result *= batch
        elif part is not None and part.isidentifier() and values.sources:
            result *= source
        else:
            decline(f"the size {name} is neither batch nor sequence")
    return result


def equal(a: Array, b: Array) -> bool:
    """Whether two evaluations agree, floats to rounding, after broadcasting."""
    try:
        a, b = np.broadcast_arrays(a, b)
    except ValueError:
        return False
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    return bool(np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-5, atol=1e-6, equal_nan=True))


SMALL = (1, 2, 3, 5, 8, 13)


def small_sizes(limit: int | None) -> list[int]:
    """Sequence lengths at which everything is evaluated, none above ``limit``."""
    return [n for n in SMALL if limit is None or n <= limit]


@dataclass(frozen=True, slots=True)
class Probe:
    """Evaluates what the decode graph computes from ``positions`` (int64[1, n]) and ``total`` (int64[1])."""

    positions: ir.Value
    total: ir.Value

    def cut(self, written: ir.Value) -> Cut:
        """The nodes behind ``written``. Raises: NoMatch if it needs more than the two."""
        assert written.graph is not None
        leaves = {self.positions, self.total}
        return Cut([written], leaves.__contains__, written.graph.opset_imports)

    def run(self, cut: Cut, places: Array, total: int) -> Array | None:
        """The result at ``places`` of one row; None where the model itself can't be that long."""
        feeds = {self.positions: places[None].astype(np.int64), self.total: np.array([total], np.int64)}
        try:
            return cut.run({leaf: feeds[leaf] for leaf in cut.leaves})[0]
        except FAILURES:
            return None

    def check(self, value: ir.Value, written: ir.Value, evaluator: SizedEvaluator, limit: int | None) -> None:
        """Require that ``written`` has the rows of ``value``, and the same however long the sequence is.

        Raises: NoMatch.
        """
        cut = self.cut(written)
        for size in small_sizes(limit):
            try:
                whole, twice = (evaluator.at(value, batch, size) for batch in (1, 2))
            except FAILURES as error:
                decline(f"{value.name} can't be evaluated at length {size} ({type(error).__name__})")
            if not equal(whole, twice):
                decline(f"{value.name} differs between the rows of a batch")
            if not self._agrees(cut, np.arange(size), size, whole):
                decline(f"{value.name} can't be cut to the rows of new tokens")
            if self._differs(cut, np.arange(size), size, size + 3, limit):
                decline(f"{value.name} depends on how long the sequence becomes")
        for number in sorted(cut.integers()):
            if number > 1 and self._differs(cut, np.array([0, number - 1]), number, 2 * number + 3, limit):
                decline(f"{value.name} depends on how long the sequence becomes, from {number} tokens on")

    def _agrees(self, cut: Cut, places: Array, total: int, wanted: Array) -> bool:
        found = self.run(cut, places, total)
        return found is not None and equal(found, wanted)

    def _differs(self, cut: Cut, places: Array, total: int, longer: int, limit: int | None) -> bool:
        if self.total not in cut.leaves or (limit is not None and longer > limit) or longer > LARGEST:
            return False
        short, long = (self.run(cut, places, size) for size in (total, longer))
        return short is not None and long is not None and not equal(short, long)
