"""prune-weights: zeros in linear weights, in a pattern that a kernel of the backend skips."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.program import Program
from ..approximation import Approximation, chosen_weight
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline
from ..moments import Moment, Moments, joined
from ..weight_uses import WeightUses
from .gains import FORCE, gain
from .patterns import PATTERNS, TILE
from .pruned import METHODS, Pruner, Pruning

ENOUGH = 3.0
"""Rows of calibration data for each direction of the inputs, from which on SparseGPT loses less than Wanda on
inputs it has not seen: at 1.4 it loses 1.4 times as much, at 2.4 the same, at 4.8 a tenth less."""


@dataclass(frozen=True, slots=True)
class _Job:
    """How a weight is pruned; ``activations``: what it is multiplied with; ``text``, ``facts``: to report."""

    pruning: Pruning
    activations: tuple[str, ...]
    text: str
    facts: Mapping[str, Any]
    forced: bool


@dataclass(frozen=True)
class PruneWeights(Pass):
    """Set weights of MatMul and Gemm to zero where the backend's kernels are faster for it.

    ``pattern``: ``unstructured``, ``2:4``, or ``block`` of 16 outputs by one input. ``sparsity``: share
    that goes, 0.5 of 2:4. ``method``: ``magnitude``, ``wanda``, ``sparsegpt``; ``auto`` is the last where
    the weight's input was measured on enough rows, ``wanda`` on fewer, without any the first. ``keep``:
    parts of names of weights that are left alone. ``output``: the output layer too. ``least``: elements
    from which on a weight is worth it. ``precision``: what the weights will be kept in otherwise, whose
    kernels the sparse one has to beat. ``force``: prune although nothing is faster for it, to study what it
    costs.
    """

    name: ClassVar[str] = "prune-weights"
    optional: ClassVar[bool] = False

    pattern: str = "unstructured"
    sparsity: float = 0.5
    method: str = "auto"
    keep: tuple[str, ...] = ()
    output: bool = False
    least: int = 4096
    precision: str = "fp32"
    force: bool = False

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        if self.pattern not in PATTERNS:
            raise OptionError(place, f"no pattern {self.pattern!r}", f"use {', '.join(PATTERNS)}")
        if self.method not in METHODS:
            raise OptionError(place, f"no method {self.method!r}", f"use {', '.join(METHODS)}")
        if not 0 < self.sparsity < 1:
            raise OptionError(place, f"sparsity={self.sparsity:g} is no share between 0 and 1", "use 0.5")
        if self.pattern == "2:4" and self.sparsity != 0.5:
            fact = f"sparsity={self.sparsity:g} of pattern 2:4, which is half zeros"
            raise OptionError(place, fact, "leave it out")

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every linear weight of every entry; one that entries share is pruned once."""
        hits: list[Note] = []
        declined: list[Note] = []
        pruner = Pruner({} if context.moments is None else context.moments)
        for model in program.entries.values():
            for value in tuple(model.graph.initializers.values()):
                name = str(value.name)
                try:
                    uses, tensor, step = chosen_weight(self, value, context, self.least)
                    precision = step._precision(context, name)
                    job = step._job(name, tensor, uses, precision, context)
                except NoMatch as left:
                    if left.reason:
                        declined.append(Note(name, left.reason))
                    continue
                value.const_value = pruner.pruned(tensor, uses.turned, job.pruning, job.activations)
                hits.append(Note(name, job.text, job.facts))
        return PassResult(len(hits), tuple(hits), tuple(declined))

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """The weight with its zeros; its bytes, in blocks, are those of the blocks that are kept."""
        try:
            job = self._job(name, tensor, uses, self.precision, context)
        except NoMatch:
            return None
        pruner = Pruner({} if context.moments is None else context.moments)
        array = pruner.pruned(tensor, uses.turned, job.pruning, job.activations).numpy()
        nbytes = tensor.nbytes
        if self.pattern == "block" and not job.forced:  # a kept block: its numbers and a 16-bit column
            rows, columns = array.shape[:: -1 if uses.turned else 1]
            nbytes = round((1 - self.sparsity) * -(-rows // TILE) * columns) * (TILE * 4 + 2)
        return Approximation(np.asarray(array, np.float32), nbytes, nbytes)

    def _job(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, precision: str, context: PassContext
    ) -> _Job:
        """How one weight is pruned. Raises: NoMatch if it is to stay."""
        columns, rows = tensor.shape.numpy()[:: 1 if uses.turned else -1]
        if any(part in name for part in self.keep):
            decline("is to be kept")
        if not uses.products:
            decline("rows of it are looked up, nothing is multiplied with it")
        if uses.look_ups:
            decline("rows of it are looked up too")
        if uses.head and not self.output:
            decline("it is the output layer (output=true prunes it)")
        if self.pattern == "2:4" and columns % 4:
            decline(f"its {columns} columns are no multiple of 4")
        density = 1 - self.sparsity
        found = gain(self.pattern, rows, columns, density, precision, context)
        if not found.refusal and tensor.dtype != ir.DataType.FLOAT:
            found = replace(
                found, refusal=f"it is {tensor.dtype}, and the sparse kernel reads float32; {FORCE}"
            )
        if found.refusal and not self.force:
            decline(found.refusal)
        activations = tuple(str(x.name) for node in uses.multiplied if (x := node.inputs[0]) is not None)
        moment = _measured(activations, columns, context.moments)
        if moment is None and self.method in ("wanda", "sparsegpt"):
            read = " and ".join(sorted(set(activations)))
            decline(f"{self.method} asks for what its input {read} is like, which was not measured")
        method, why = self._method(moment)
        pruning = Pruning(self.pattern, self.sparsity, method)
        pattern = {"block": "1x16 blocks", "2:4": "2:4"}.get(self.pattern, "anywhere")
        text = f"{rows} x {columns}, {pattern}, density {density:g}, by {pruning.method}"
        text += f", forced: {found.refusal}" if found.refusal else f": {found}"
        text += why
        facts = {"shape": [rows, columns], "pattern": self.pattern, "density": density, "method": method}
        return _Job(pruning, activations, text, {**facts, "gain": found.times}, bool(found.refusal))

    def _method(self, moment: Moment | None) -> tuple[str, str]:
        """And why a better one was not taken."""
        if self.method != "auto":
            return self.method, ""
        if moment is None:
            return "magnitude", ""
        few = moment.too_few(ENOUGH)
        return ("wanda", f"; not sparsegpt: {few}") if few else ("sparsegpt", "")

    def _precision(self, context: PassContext, name: str) -> str:
        """What the weight will be kept in: what was asked for, or what the budget chose."""
        from ..precision.weights import QuantizeWeights

        bits = {"int8": 8, "int4": 4}.get(self.precision)
        if bits is None:
            return self.precision
        chosen = context.chosen(QuantizeWeights(bits=bits), name)
        if chosen is None:
            return "fp32"
        return "fp16" if chosen.bits == 16 else f"int{chosen.bits}"


def _measured(activations: tuple[str, ...], columns: int, moments: Moments | None) -> Moment | None:
    """Of what a weight is multiplied with, if all its channels were measured."""
    read = joined(activations, moments)
    moment = None if read is None else read()
    return None if moment is None or moment.matrix.shape != (columns, columns) else moment
