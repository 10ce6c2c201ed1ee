"""The C function of one entry while it is emitted: views of its values, memory, steps in order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from ...errors import InternalError, Problem, UnsupportedError
from ...ir.check_structure import place
from ...program import Decoding
from .constants import Constants
from .emit.base import CTYPES, Size, View, row_major, times
from .emit.copies import copied
from .emit.table import operator_of
from .functions import Functions
from .memory import Lifetime, Slot, live_steps, plan, waits
from .pack import PackedWeight
from .sizes import Sizes, c_name
from .source import source_of
from .support import reason_against
from .views import contiguous
from .weights_file import WeightFile

_BUFFER = re.compile(r"@(\d+)@")
_REGION = re.compile(r"\$(\d+)\$")

_READ = {"float": "floats", "int64_t": "longs", "int32_t": "ints"}
"""Functions of kernels/plan.h by what they read from the weight file."""

_THROUGH = frozenset(("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"))
"""Operators whose contiguous output is their contiguous input."""


@dataclass(slots=True)
class Buffer:
    """Memory of a value: ``place`` is its C expression where it is a tensor of the call."""

    ctype: str
    size: Size
    place: str = ""
    over: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Statements of one node, where they come from, and the buffers they read (or write) and write."""

    source: str
    code: str
    reads: frozenset[int]
    writes: frozenset[int]
    scratch: tuple[tuple[Size, Size], ...]


@dataclass(slots=True)
class _Pending:
    """What the node that is being emitted has asked for since its last step."""

    made: set[int] = field(default_factory=set)
    scratch: list[tuple[Size, Size]] = field(default_factory=list)


class EntryWriter:
    """An ``emit.base.Entry``. Nodes are emitted in order, then ``finish`` drops what has no effect.

    Buffers and weights are named by marks (``@3@``, ``$7$``) until it is known where they lie.
    """

    __slots__ = (
        "_buffers",
        "_functions",
        "_homes",
        "_missing",
        "_pending",
        "_places",
        "_state",
        "_views",
        "_weights",
        "constants",
        "graph",
        "inputs",
        "outputs",
        "sizes_of_entry",
        "steps",
    )  # fmt: skip

    def __init__(
        self, graph: ir.Graph, weights: WeightFile, functions: Functions, decoding: Decoding | None
    ) -> None:
        self.graph = graph
        self.sizes_of_entry = Sizes.of(graph)
        self.constants = Constants()
        self.steps: list[Step] = []
        self._weights, self._functions = weights, functions
        self._buffers: list[Buffer] = []
        self._views: dict[ir.Value, View] = {}
        self._pending = _Pending()
        self._places: dict[ir.Value, View] = {}
        self._missing: dict[ir.Value, tuple[Problem, ...]] = {}
        state = {} if decoding is None else {t.output: t.input for t in decoding.state}
        self._state = state
        self.inputs = [v for v in graph.inputs if v.name not in graph.initializers]
        self.outputs = [v for v in graph.outputs if v.name not in state]
        held = set(state.values())
        taken = list(self.sizes_of_entry.spelled)
        for index, value in enumerate(self.inputs):
            name = c_name(str(value.name), taken, "_tensor")
            taken.append(name)
            self._views[value] = self._tensor(value, index, "" if value.name in held else name)
        for index, value in enumerate(self.outputs):
            name = c_name(str(value.name), taken, "_tensor")
            taken.append(name)
            self._places[value] = self._tensor(value, len(self.inputs) + index, name)
        self._homes = {v: p for v, p in self._places.items() if v not in self._views}
        for value in self.outputs:
            self._settle(value)

    def _tensor(self, value: ir.Value, index: int, name: str) -> View:
        """The memory of an input or output; ``name``: of its C variable, none for a state tensor."""
        ctype = self._ctype(value)
        shape = self.sizes(value)
        where = name or f"(({ctype} *)run->tensors[{index}])"
        return contiguous(self._mark(Buffer(ctype, times(*shape), where)), ctype, shape)

    def _settle(self, output: ir.Value) -> None:
        """Let the value that an output is a reshaping of be computed in the output's memory."""
        place, node = self._places[output], output.producer()
        while node is not None and node.op_type in _THROUGH and node.inputs[0] is not None:
            value = node.inputs[0]
            shape = self.sizes_of_entry.shape(value)
            settled = value in self._homes or value in self._views or self.constants.holds(value)
            if settled or shape is None or None in shape:
                return
            self._homes[value] = contiguous(place.pointer, place.ctype, self.sizes(value))
            node = value.producer()

    # ---- what emitters ask for

    def view(self, value: ir.Value) -> View:
        """Where a node's input lies: a buffer, an entry's input, a constant, or an alias of one."""
        found = self._views.get(value)
        if found is not None:
            return found
        if value in self._missing:
            raise UnsupportedError.of(self._missing[value])
        if self.constants.holds(value):
            return self.constant(value)
        raise InternalError(f"value {value.name!r} is read before it is emitted")

    def contiguous(self, value: ir.Value) -> View:
        """``view``, copied by a step of its own if it is not contiguous."""
        view = self.view(value)
        if view.is_contiguous:
            return view
        node = value.producer()
        made, self._pending = self._pending, _Pending()
        copy = self._new(view.ctype, view.shape)
        self._add(f"{'' if node is None else source_of(node) + ': '}{value.name} made contiguous",
                  copied(view, copy))  # fmt: skip
        self._pending = made
        self._views[value] = copy
        return copy

    def new(self, value: ir.Value, strides: Sequence[Size] | None = None) -> View:
        """Memory for a node's output, contiguous by default; ``strides`` permute its axes in memory."""
        shape = self.sizes(value)
        home = self._homes.get(value)
        if home is not None and (strides is None or tuple(strides) == home.strides):
            self._pending.made.add(_mark_of(home.pointer))
            self._views[value] = home
            return home
        view = self._new(self._ctype(value), shape, strides)
        self._views[value] = view
        return view

    def over(self, value: ir.Value, old: ir.Value, strides: Sequence[Size] | None = None) -> View:
        """``new`` in the memory of ``old``, if nothing reads ``old`` behind this node."""
        view = self.new(value, strides)
        marks = _BUFFER.findall(self.view(old).pointer)
        if marks and self.view(old).is_contiguous and view.is_contiguous:
            self._buffers[_mark_of(view.pointer)].over = int(marks[0])
        return view

    def alias(self, value: ir.Value, view: View) -> None:
        """The output is ``view``, other memory seen differently: no code."""
        self._views[value] = view

    def constant(self, value: ir.Value) -> View:
        """A plain copy of a constant in the weight file."""
        return self.constants_beside([value])

    def constants_beside(self, values: Sequence[ir.Value]) -> View:
        """Plain copies of constants, one behind the other, as if the first axis went on."""
        ctype, shape = self._ctype(values[0]), self.sizes(values[0])
        if len(values) > 1:
            shape = (sum(int(self.sizes(v)[0]) for v in values), *shape[1:])
        region = self._weights.plain(values)
        read = _READ.get(ctype, f"(const {ctype} *)")
        return contiguous(f"{read}(weights + ${region}$)", ctype, shape)

    def sizes(self, value: ir.Value) -> tuple[Size, ...]:
        """The shape of ``value`` in C. Raises: UnsupportedError if a size is unknown when compiled."""
        found = self.sizes_of_entry.shape(value)
        if found is None or any(size is None for size in found):
            node = value.producer()
            where = f"value {value.name!r}" if node is None else place(node)
            raise UnsupportedError(
                where, f"the shape {value.shape} of {value.name!r} is not known from the inputs'"
            )
        return tuple(size for size in found if size is not None)

    def step(self, node: ir.Node, code: str) -> None:
        """Add C statements that every worker runs; a barrier follows."""
        self._add(source_of(node), code)

    def packing(self, values: Sequence[ir.Value]) -> PackedWeight:
        """How a weight, or the gate and up weights of a gated layer, is packed."""
        return self._weights.packing(values)

    def packed(self, weights: Sequence[Sequence[ir.Value]]) -> tuple[str, PackedWeight]:
        """Weights of one packing, one behind the other as if they were one: their address, what they are."""
        region, weight = self._weights.packed(weights)
        return f"weights + ${region}$", weight

    def is_packed(self, value: ir.Value) -> bool:
        """Whether ``value`` is a constant [rows, columns] that some Linear takes, or that is quantized."""
        if not self.constants.holds(value) or value.shape is None or len(value.shape) != 2:
            return False
        taken = any(use.node.op_type == "Linear" and use.idx in (4, 6, 8) for use in value.uses())
        return taken or (value.producer() is not None and not value.is_initializer())

    def function(self, name: str, text: str) -> str:
        """A function of model.c, once for the same text, and its name."""
        return self._functions.add(name, text)

    def scratch(self, worker: Size, shared: Size) -> None:
        """Bytes of scratch memory that the next step's kernels ask for."""
        self._pending.scratch.append((worker, shared))

    # ---- what they make

    def _ctype(self, value: ir.Value) -> str:
        if self.constants.holds(value) and value.dtype is not None and value.dtype.is_floating_point():
            return "float"
        ctype = None if value.dtype is None else CTYPES.get(value.dtype)
        if ctype is None:
            raise UnsupportedError(f"value {value.name!r}", f"has dtype {value.dtype}")
        return ctype

    def _new(self, ctype: str, shape: Sequence[Size], strides: Sequence[Size] | None = None) -> View:
        pointer = self._mark(Buffer(ctype, times(*shape)))
        self._pending.made.add(_mark_of(pointer))
        return View(pointer, ctype, tuple(shape), row_major(shape) if strides is None else tuple(strides))

    def _mark(self, buffer: Buffer) -> str:
        self._buffers.append(buffer)
        return f"@{len(self._buffers) - 1}@"

    def _add(self, source: str, code: str) -> None:
        marks = frozenset(int(m) for m in _BUFFER.findall(code))
        state = frozenset(m for m in marks if self._buffers[m].place.startswith("("))
        writes = (marks & self._pending.made) | state
        self.steps.append(Step(source, code, marks, writes, tuple(self._pending.scratch)))
        self._pending.scratch.clear()

    def pointer_of(self, value: ir.Value) -> tuple[str, str] | None:
        """dtype and name of the variable that holds an input's or output's address; None for state."""
        view = self._places.get(value) or self._views[value]
        where = self._buffers[_mark_of(view.pointer)].place
        return None if where.startswith("(") else (view.ctype, where)

    def emit(self, node: ir.Node) -> None:
        """Emit ``node``. What can't be emitted is an error only if an output needs it: shapes are known."""
        if all(self.constants.holds(v) for v in node.outputs):
            return
        self._pending = _Pending()
        before = len(self.steps)
        try:
            operator, reason = operator_of(node), reason_against(node, self.constants, self.sizes_of_entry)
            if operator is None or reason is not None:
                raise UnsupportedError(place(node), reason or "no kernel is written for it")
            operator.emit(node, self)
        except UnsupportedError as error:
            del self.steps[before:]
            inputs = [p for v in node.inputs if v is not None for p in self._missing.get(v, ())]
            problems = tuple(dict.fromkeys([*inputs, *error.problems]))
            for value in node.outputs:
                self._views.pop(value, None)
                self._missing[value] = problems

    def finish(self) -> Finished:
        """Copy outputs that lie elsewhere into place, drop steps without effect, place the buffers."""
        missing = [p for v in self.graph.outputs for p in self._missing.get(v, ())]
        if missing:
            raise UnsupportedError.of(list(dict.fromkeys(missing)))
        for value in self.outputs:
            home, view = self._places[value], self.view(value)
            if view != home:
                self._pending = _Pending(made={_mark_of(home.pointer)})
                self._add(f"output {value.name}", copied(view, home))
        for output, name in self._state.items():
            value = next(v for v in self.graph.outputs if v.name == output)
            kept = next(v for v in self.inputs if v.name == name)
            if self._views.get(value) != self._views[kept]:
                raise UnsupportedError(f"state {output!r}", "is not written in place by an attention")
        kept_marks = frozenset(i for i, b in enumerate(self._buffers) if b.place)
        alive = live_steps([s.reads for s in self.steps], [s.writes for s in self.steps], kept_marks)
        steps = [step for step, lives in zip(self.steps, alive, strict=True) if lives]
        lifetimes: dict[int, Lifetime] = {}
        for index, step in enumerate(steps):
            for mark in step.reads - kept_marks:
                buffer, known = self._buffers[mark], lifetimes.get(mark)
                first = index if known is None else known.first
                lifetimes[mark] = Lifetime(buffer.size, buffer.ctype, first, index, buffer.over)
        placed, slots = plan(lifetimes)
        names = {mark: f"b{slot}" for mark, slot in placed.items()}
        names |= {mark: self._buffers[mark].place for mark in kept_marks}
        used = [tuple(frozenset(names[m] for m in marks) for marks in (s.reads, s.writes)) for s in steps]
        wait = waits([r for r, _ in used], [w for _, w in used], [bool(s.scratch) for s in steps])
        code = [_BUFFER.sub(lambda m: names[int(m[1])], step.code) for step in steps]
        return Finished(self, slots, [Emitted(*step) for step in zip(steps, code, wait, strict=True)])


@dataclass(frozen=True, slots=True)
class Emitted:
    """A step whose buffers are placed: its code, and whether all workers meet before it."""

    step: Step
    code: str
    waits: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """An emitted entry: its buffers, its steps with code whose weights are still marked."""

    entry: EntryWriter
    slots: list[Slot]
    steps: list[Emitted]

    def regions(self) -> Iterator[int]:
        """Weights in the order in which a run reads them."""
        for step in self.steps:
            yield from (int(m) for m in _REGION.findall(step.code))


def with_weights(code: str, weights: WeightFile) -> str:
    """Code whose marks of weights are replaced by their names."""
    return _REGION.sub(lambda m: weights.regions[int(m[1])].name, code)


def _mark_of(pointer: str) -> int:
    found = _BUFFER.search(pointer)
    assert found is not None
    return int(found[1])
