"""How the weights that read one value are factored: each by itself or together, if it pays at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.cost import Device, cpu, device
from ...compiler.reference import Array
from ..base import PassContext, decline
from ..moments import Moment, Moments
from .factors import Spectrum, factors, spectrum, stacked
from .gain import Product, break_even, gain

if TYPE_CHECKING:
    from .factor import FactorWeights


@dataclass(frozen=True, slots=True)
class Weight:
    """``tensor``: [rows, columns], or ``turned`` [columns, rows]; ``node`` multiplies ``x`` with it."""

    name: str
    tensor: ir.TensorProtocol
    turned: bool
    node: ir.Node
    x: ir.Value

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.tensor.shape.numpy()[:: -1 if self.turned else 1]
        return rows, columns

    def array(self) -> Array:
        """float32[rows, columns]."""
        array = self.tensor.numpy().astype(np.float32)
        return array.T if self.turned else array


class Spectra:
    """The spectrum of one weight or of several stacked, held as long as a program holds its factors."""

    __slots__ = ("__weakref__", "_held", "found", "sizes")

    def __init__(self, weights: Sequence[Weight], moment: Moment | None) -> None:
        self._held = [w.tensor for w in weights], moment
        matrix = None if moment is None else moment.matrix
        arrays = [w.array() for w in weights]
        array, self.sizes = stacked(arrays, matrix) if len(arrays) > 1 else (arrays[0], [1.0])
        self.found: Spectrum = spectrum(array, matrix)


_KNOWN: WeakValueDictionary[tuple[object, ...], Spectra] = WeakValueDictionary()
"""By tensors and moment, which they hold."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Factors of ``weights`` that share the first, at the rank of ``product``."""

    weights: Sequence[Weight]
    spectra: Spectra
    product: Product

    def tensors(self) -> tuple[list[Array], Array]:
        """float32[rows, rank] of each weight, float32[rank, columns] of all."""
        arrays = [w.array() for w in self.weights]
        whole = np.concatenate([a / s for a, s in zip(arrays, self.spectra.sizes, strict=True)])
        thin, first = factors(whole, self.spectra.found, self.product.rank)
        ends = np.cumsum([len(a) for a in arrays])[:-1]
        parts = zip(np.split(thin, ends), self.spectra.sizes, strict=True)
        return [(part * size).astype(np.float32) for part, size in parts], first

    @property
    def lost(self) -> float:
        """Share of the output's power that is lost, the mean over the weights."""
        return self.spectra.found.lost(self.product.rank)


def planned(weights: Sequence[Weight], step: FactorWeights, context: PassContext) -> list[Plan]:
    """How weights that read one value are factored: each by itself or together. Raises: NoMatch."""
    columns = weights[0].shape[1]
    moment = moment_of(weights[0], context.moments)
    whole = [Product([w.shape[0] for w in weights], columns)]
    if not step.loss:
        ranks = [_rounded(step.rank * break_even(*w.shape), step.multiple) for w in weights]
        thin = [Product([w.shape[0]], columns, rank) for w, rank in zip(weights, ranks, strict=True)]
        _check(whole, thin, step, context)  # before anything is decomposed
    alone = [_spectra([w], moment) for w in weights]
    if step.loss:
        ranks = [_rounded(s.found.rank(step.loss), step.multiple, up=True) for s in alone]
    single = [
        Plan([w], s, Product([w.shape[0]], columns, min(r, *w.shape)))
        for w, s, r in zip(weights, alone, ranks, strict=True)
    ]
    best = single
    if step.join and len(weights) > 1:
        together = _joined(weights, moment, single, step)
        if together is not None:
            best = [together]
    _check(whole, [plan.product for plan in best], step, context)
    return best


def _joined(
    weights: Sequence[Weight], moment: Moment | None, single: Sequence[Plan], step: FactorWeights
) -> Plan | None:
    """One first factor for all, if that loses less at the same size, or is smaller at the same loss."""
    rows, columns = [w.shape[0] for w in weights], weights[0].shape[1]
    size = sum(plan.product.size for plan in single)
    spectra = _spectra(weights, moment)
    if step.loss:
        rank = _rounded(spectra.found.rank(step.loss), step.multiple, up=True)
    else:
        rank = int(size / (columns + sum(rows)) / step.multiple) * step.multiple
    rank = min(rank, columns, sum(rows))
    plan = Plan(weights, spectra, Product(rows, columns, rank))
    if step.loss:
        return plan if plan.product.size < size else None
    lost = sum(s.lost for s in single) / len(single)
    return plan if rank > 0 and plan.lost < lost else None


def _spectra(weights: Sequence[Weight], moment: Moment | None) -> Spectra:
    key = (*((id(w.tensor), w.turned) for w in weights), id(moment))
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = Spectra(weights, moment)
    return found


def _check(
    whole: Sequence[Product], factored: Sequence[Product], step: FactorWeights, context: PassContext
) -> None:
    """Raises: NoMatch with the figures unless it pays."""
    ranks = "+".join(str(p.rank) for p in factored)
    before, after = (sum(p.size for p in products) for products in (whole, factored))
    found = gain(whole, factored, _device(context), step.bits)
    if not step.force and found < step.min_gain:
        figures = f"{found:.2f} times as fast, not {step.min_gain:g} ({after / before:.0%} of the size)"
        decline(f"at rank {ranks} it would be {figures}")


def _device(context: PassContext) -> Device:
    return cpu() if context.target.device == "cpu" else device("a100-80gb")


def _rounded(rank: float, multiple: int, *, up: bool = False) -> int:
    steps = -(-rank // multiple) if up else round(rank / multiple)
    return max(1, int(steps)) * multiple


def moment_of(weight: Weight, moments: Moments | None) -> Moment | None:
    """Of what a weight is multiplied with, if it was measured."""
    found = None if moments is None else moments.get(str(weight.x.name))
    return found if found is not None and found.matrix.shape[0] == weight.shape[1] else None
