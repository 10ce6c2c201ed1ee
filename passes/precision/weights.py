"""Weights of 8 or 4 bits, rounded block by block, or of 16: matrices and tables; activations as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.provenance import add_passes
from ...compiler.ir.quantized import BlockedWeight, emit_blocked
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ..approximation import Approximation, chosen_weight
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline
from ..moments import Moment, Moments, joined
from ..sparsity.gains import stays_sparse
from ..weight_uses import Reader, WeightUses
from .blocks import Rounded, rounded_weight
from .grids import SCHEMES, Rounding
from .half import loss
from .halves import HALF, Halves, as_half

METHODS = ("rtn", "search", "gptq")
ENOUGH = 1.5
"""Rows of calibration data for each direction of the inputs, from which on gptq loses less than a search on
inputs it has not seen: even at 1.4 where all directions are as strong, far ahead at 1.6 where few are."""

_LEAST_BLOCK = 16


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Round the weights of MatMul and Gemm, and embedding tables, to blocks of few bits with a scale each.

    ``bits``: 8 or 4, or 16, which are float16 numbers without blocks. ``output``: bits of the output layer,
    ``table``: of tables that rows are looked up in; a tied table is stored twice if they differ. ``block``:
    columns that share a scale; half as many, and so on down to 16, where a weight's columns are no multiple.
    ``scheme``: ``symmetric`` around zero, ``asymmetric`` with an integer zero point per block, ``offset``
    with a float one, ``auto`` the first for 8 bits, the second for 4. ``method``: ``rtn`` spans each block's
    range; ``search`` takes the scale of least squared error; ``gptq`` lets later columns make up for earlier
    ones' rounding, ``auto`` does that for 4 bits where the activations were measured on enough rows, else
    searches. ``sweeps``, ``damping``, ``ordered``: of gptq, see Rounding. ``keep``: parts of names of weights
    that are left alone. ``least``: elements from which on a weight is worth it. Each weight is read, rounded
    and written by itself. Weights that the source has quantized already stay as they are.
    """

    name: ClassVar[str] = "quantize-weights"
    optional: ClassVar[bool] = False

    bits: int = 8
    output: int = 8
    table: int = 8
    block: int = 32
    scheme: str = "auto"
    method: str = "auto"
    sweeps: int = 2
    damping: float = 0.01
    ordered: bool = True
    keep: tuple[str, ...] = ()
    least: int = 4096

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        for name, bits in (("bits", self.bits), ("output", self.output), ("table", self.table)):
            if bits not in (4, 8, HALF):
                raise OptionError(place, f"{name}={bits} is not offered", "use 16, 8 or 4")
        if self.block < _LEAST_BLOCK or self.block & (self.block - 1):
            raise OptionError(place, f"block={self.block} is no power of two from 16 on", "use 32")
        for name, chosen, offered in (("scheme", self.scheme, SCHEMES), ("method", self.method, METHODS)):
            if chosen not in ("auto", *offered):
                raise OptionError(place, f"no {name} {chosen!r}", f"use auto, {', '.join(offered)}")
        if self.sweeps < 0 or not self.damping > 0:
            fact = f"sweeps={self.sweeps}, damping={self.damping:g} are not offered"
            raise OptionError(place, fact, "use sweeps from 0 on and a damping above 0")

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every weight of every entry; one that entries share is rounded once."""
        hits: list[Note] = []
        declined: list[Note] = []
        held: dict[tuple[int, Rounding], Rounded] = {}
        halves = Halves()
        for model in program.entries.values():
            graph = model.graph
            place = {node: index for index, node in enumerate(graph)}
            for value in tuple(graph.initializers.values()):
                name = str(value.name)
                try:
                    uses, tensor, chosen = chosen_weight(self, value, context, self.least)
                    plans = chosen._plans(name, uses, tensor, context.moments)
                    if not uses.look_ups and (sparse := chosen._stays_sparse(tensor, uses, context)):
                        decline(sparse)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
                    continue
                for plan in plans:
                    if plan.rounding is None:
                        note = halves.put(model, value, tensor, plan.readers)
                        hits += [] if note is None else [note]
                        continue
                    key = id(tensor), plan.rounding
                    found = held.get(key)
                    if found is None:
                        found = held[key] = rounded_weight(tensor, uses.turned, plan.rounding, plan.moment)
                    at = Rewriter(min((node for node, _ in plan.readers), key=place.__getitem__))
                    _swap(value, found, uses.turned, plan.readers, at)
                    hits.append(Note(name, _told(found) + plan.why))
                    for made in at.made:
                        add_passes(made, [self.name])
                if not value.uses():
                    graph.initializers.pop(name, None)
        return PassResult(len(hits), tuple(hits), tuple(declined))

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """The weight rounded as its products read it; a table that is only looked up, as look-ups do."""
        try:
            plans = self._plans(name, uses, tensor, context.moments)
        except NoMatch:
            return None
        if not uses.look_ups and self._stays_sparse(tensor, uses, context):
            return None
        found = [plan.approximation(tensor, uses.turned, context) for plan in plans]
        nbytes, last = sum(each.nbytes for each in found), found[-1]
        return Approximation(last.array, nbytes, last.read if uses.products else 0)

    def _stays_sparse(self, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext) -> str:
        bits = self.output if uses.head else self.bits
        return stays_sparse(tensor, uses.turned, bits, context)

    def _plans(
        self, name: str, uses: WeightUses, tensor: ir.TensorProtocol, moments: Moments | None
    ) -> list[_Plan]:
        """Which readers of a weight get which rounding. Raises: NoMatch if it has to stay."""
        if any(part in name for part in self.keep):
            decline("is to be kept")
        bits = self.output if uses.head else self.bits
        wanted = {bits for _ in uses.products} | {self.table for _ in uses.look_ups}
        columns = tensor.shape.numpy()[0 if uses.turned else 1]
        block = min(self.block, columns & -columns)
        if block < _LEAST_BLOCK and wanted != {HALF}:
            decline(f"its {columns} columns are no multiple of the block of {self.block}")
        if tensor.dtype != ir.DataType.FLOAT:
            decline(f"there are no kernels for {tensor.dtype} products with blocked weights")
        if HALF in wanted and (why := loss(tensor, saturate=False, divides=False)):
            decline(why)
        moment = joined([str(node.inputs[0].name) for node in uses.multiplied if node.inputs[0]], moments)
        if moment is not None and moment().matrix.shape != (columns, columns):
            moment = None
        if not uses.products:
            return [self._plan(self.table, block, None, uses.look_ups)]
        both = (*uses.look_ups, *uses.products)
        if not uses.look_ups or self.table == bits:
            return [self._plan(bits, block, moment, both)]
        return [
            self._plan(self.table, block, None, uses.look_ups),
            self._plan(bits, block, moment, uses.products),
        ]

    def _plan(
        self, bits: int, block: int, moment: Callable[[], Moment] | None, readers: tuple[Reader, ...]
    ) -> _Plan:
        if bits == HALF:
            return _Plan(None, readers, None, "")
        scheme, method, why = self.scheme, self.method, ""
        if scheme == "auto":
            scheme = "symmetric" if bits == 8 else "asymmetric"
        if method == "auto":
            method = "gptq" if bits == 4 else "search"
            if method == "gptq" and moment is not None and (few := moment().too_few(ENOUGH)):
                method, why = "search", f"; not gptq: {few}"
        if method != "gptq" or moment is None:
            rounding = Rounding(bits, block, scheme, "search" if method == "gptq" else method)
        else:
            rounding = Rounding(bits, block, scheme, method, self.sweeps, self.damping, self.ordered)
        return _Plan(rounding, readers, moment, why)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Readers of a weight that get it rounded in one way, None: to float16; ``why`` another was not taken."""

    rounding: Rounding | None
    readers: tuple[Reader, ...]
    moment: Callable[[], Moment] | None
    why: str

    def approximation(self, tensor: ir.TensorProtocol, turned: bool, context: PassContext) -> Approximation:
        if self.rounding is None:
            return as_half(tensor, context)
        found = rounded_weight(tensor, turned, self.rounding, self.moment).weight
        array, nbytes = found.numpy(), _nbytes(found)
        return Approximation(array.T if turned else array, nbytes, nbytes)


def _told(found: Rounded) -> str:
    rows, columns = found.weight.shape
    how = found.rounding
    error = found.error()
    measured = "activations not measured" if error is None else f"relative output error {error:.2e}"
    size = f"{rows} x {columns} in {how.bits} bits, blocks of {how.block}"
    return f"{size}, {how.scheme}, {how.method}, {measured}"


def _nbytes(weight: BlockedWeight) -> int:
    parts = (weight.data, weight.scale, weight.zero_point, weight.offset)
    return sum(part.nbytes for part in parts if part is not None)


def _swap(value: ir.Value, found: Rounded, turned: bool, readers: Sequence[Reader], at: Rewriter) -> None:
    made = emit_blocked(found.weight, str(value.name), at)
    if turned:
        rows, columns = found.weight.shape
        made = at.op("Transpose", made, perm=(1, 0))
        made.type, made.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([columns, rows])
    for node, index in readers:
        node.replace_input_with(index, made)
