"""Weights as products of two thin ones, where the cost model says that this is faster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.provenance import add_passes, merge_sources
from ...compiler.ir.rewrite import Rewriter, remove_dead
from ...compiler.program import Program
from ..approximation import Approximation, chosen_weight
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline, skip
from ..moments import LazyMoments, Moment, Moments
from ..weight_uses import WeightUses
from .plan import Plan, Spectra, Weight, planned

MARK = "miaotui.factor_weights"
"""Marks products with factors, which are not factored once more."""


@dataclass(frozen=True)
class FactorWeights(Pass):
    """Replace weights W by products A·B of two thin ones where that is faster.

    ``rank``: share of the rank at which A and B are as large as W; what results is a multiple of
    ``multiple``. ``loss``: if positive, each weight instead gets the least rank that loses no more than
    this share of its output's power. Weights that read the same input, such as query, key and value, share
    B if ``join`` and if that loses less at the same size. A weight stays whole unless the cost model says
    that the factors are ``min_gain`` times as fast, for one row of activations and for 128, with weights
    of ``bits`` bits; ``force`` factors it all the same. ``keep``: parts of names of weights that are left
    alone; ``least``: elements from which on a weight is worth it. Directions are those of greatest output
    on measured activations (SVD-LLM, arXiv 2403.07378), without these of the weight itself.
    """

    name: ClassVar[str] = "factor-weights"
    optional: ClassVar[bool] = False

    rank: float = 0.5
    loss: float = 0.0
    multiple: int = 16
    min_gain: float = 1.1
    join: bool = True
    bits: int = 32
    keep: tuple[str, ...] = ()
    least: int = 4096
    force: bool = False

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        if not 0 < self.rank < 1:
            raise OptionError(place, f"rank={self.rank} is no share between 0 and 1", "give one such as 0.5")
        if not 0 <= self.loss < 1:
            raise OptionError(
                place, f"loss={self.loss} is no share from 0 to below 1", "give one such as 0.01"
            )
        if self.multiple < 1:
            raise OptionError(place, f"multiple={self.multiple} is less than 1", "use 16, or 1 for any rank")
        if self.bits not in (4, 8, 16, 32):
            raise OptionError(place, f"bits={self.bits} is not offered", "use 32, 16, 8 or 4")

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every weight of every entry; one that entries share is factored once."""
        work = _Work(self, context)
        for model in program.entries.values():
            readers: dict[tuple[ir.Value, FactorWeights], list[Weight]] = {}
            for value in tuple(model.graph.initializers.values()):
                found = work.weight(value)
                if found is not None:
                    readers.setdefault((found[0].x, found[1]), []).append(found[0])
            for (_, step), group in readers.items():
                work.factor(group, step)
        return PassResult(len(work.hits), tuple(work.hits), tuple(work.declined), LazyMoments(work.moments))

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """The product of the factors, if it pays; joined ones count as if each had factors of its own."""
        try:
            weight = _weight(name, tensor, uses, self)
            (plan,) = planned([weight], self, context)
        except NoMatch:
            return None
        (thin,), first = plan.tensors()
        array = thin @ first
        nbytes = 4 * plan.product.size
        kept = plan.product.size / tensor.size
        return Approximation(array.T if weight.turned else array, nbytes, nbytes, kept)


@dataclass(slots=True)
class _Work:
    step: FactorWeights
    context: PassContext
    hits: list[Note] = field(default_factory=list)
    declined: list[Note] = field(default_factory=list)
    moments: dict[str, partial[Moment]] = field(default_factory=dict)
    made: dict[tuple[int, ...], tuple[Spectra, list[ir.TensorProtocol], ir.TensorProtocol]] = field(
        default_factory=dict
    )

    def weight(self, value: ir.Value) -> tuple[Weight, FactorWeights] | None:
        """``value`` as a weight to factor, if it is one and is to be, and the options for it."""
        name = str(value.name)
        try:
            uses, tensor, step = chosen_weight(self.step, value, self.context, self.step.least)
            return _weight(name, tensor, uses, step), step
        except NoMatch as left:
            if left.reason:
                self.declined.append(Note(name, left.reason))
            return None

    def factor(self, group: Sequence[Weight], step: FactorWeights) -> None:
        """Weights that read one value, with the same options."""
        try:
            plans = planned(group, step, self.context)
        except NoMatch as left:
            self.declined += [Note(weight.name, left.reason) for weight in group]
            return
        for plan in plans:
            self._replace(plan)

    def _replace(self, plan: Plan) -> None:
        first, names = plan.weights[0], [w.name for w in plan.weights]
        graph = first.node.graph
        assert graph is not None
        place = {node: index for index, node in enumerate(graph)}
        at = Rewriter(min((w.node for w in plan.weights), key=place.__getitem__))
        thins, shared = self._tensors(plan)
        inner = at.op("MatMul", first.x, at.const(shared, f"{first.name}.in"))
        inner.type = first.x.type
        if first.x.shape is not None:
            inner.shape = ir.Shape([*first.x.shape[:-1], plan.product.rank])
        merge_sources(at.made[0], [w.node for w in plan.weights])
        add_passes(at.made[0], [FactorWeights.name])
        at.made[0].metadata_props[MARK] = "1"
        for weight, thin in zip(plan.weights, thins, strict=True):
            old, node = weight.node.inputs[1], weight.node
            assert old is not None
            node.replace_input_with(0, inner)
            node.replace_input_with(1, at.const(thin, f"{weight.name}.out"))
            if node.op_type == "Gemm":
                node.attributes["transB"] = ir.AttrInt64("transB", 0)
            maker = old.producer()
            if maker is not None:
                remove_dead([maker])
            graph.initializers.pop(weight.name, None)
            add_passes(node, [FactorWeights.name])
            node.metadata_props[MARK] = "1"
            rows, columns = weight.shape
            text = (
                f"{rows} x {columns} at rank {plan.product.rank}, {plan.lost:.2%} of the output's power lost"
            )
            others = [name for name in names if name != weight.name]
            text = f"{text}, with {', '.join(others)}" if others else text
            share = plan.product.size / sum(w.tensor.size for w in plan.weights)
            facts = {"shape": [rows, columns], "pattern": "rank", "density": round(share, 4)}
            self.hits.append(Note(weight.name, text, {**facts, "rank": plan.product.rank}))
        known, name = self.context.moments or {}, str(first.x.name)
        if name in known:
            self.moments[str(inner.name)] = partial(_inner_moment, known, name, shared)

    def _tensors(self, plan: Plan) -> tuple[list[ir.TensorProtocol], ir.TensorProtocol]:
        """The factors as they are stored, [rank, rows] and [columns, rank]; entries share them."""
        key = (*(id(w.tensor) for w in plan.weights), plan.product.rank)
        if key not in self.made:
            thins, shared = plan.tensors()
            made = [ir.Tensor(np.ascontiguousarray(t.T)) for t in (*thins, shared)]
            self.made[key] = plan.spectra, list(made[:-1]), made[-1]
        return self.made[key][1:]


def _weight(name: str, tensor: ir.TensorProtocol, uses: WeightUses, step: FactorWeights) -> Weight:
    """Raises: NoMatch."""
    if any(node.metadata_props.get(MARK) for node in uses.multiplied):
        skip()
    if any(part in name for part in step.keep):
        decline("is to be kept")
    if uses.look_ups:
        decline("rows of it are looked up, too")
    if len(uses.multiplied) != 1:
        decline(f"{len(uses.multiplied)} products read it")
    if tensor.dtype != ir.DataType.FLOAT:
        decline(f"it is {tensor.dtype}, only float32 is factored")
    node = uses.multiplied[0]
    x = node.inputs[0]
    assert x is not None
    return Weight(name, tensor, uses.turned, node, x)


def _inner_moment(moments: Moments, name: str, shared: ir.TensorProtocol) -> Moment:
    whole, first = moments[name], shared.numpy()
    return Moment((first.T @ whole.matrix @ first).astype(np.float32), whole.rows)
