"""A weight with zeros put into it, computed when it is read: which go, by magnitude or by what inputs say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.reference import Array
from ..moments import Moment, Moments, joined
from .patterns import kept
from .sparsegpt import inverse_factor, sparsegpt

METHODS = ("auto", "magnitude", "wanda", "sparsegpt")


@dataclass(frozen=True, slots=True)
class Pruning:
    """What to prune and how; ``method``: of ``METHODS`` besides ``auto``.

    ``magnitude`` keeps the greatest, ``wanda`` (arXiv 2306.11695) the greatest times the root mean square of
    their input, compared row by row, or tile by tile of blocks; ``sparsegpt`` (arXiv 2301.00774) besides
    moves what is kept.
    """

    pattern: str
    sparsity: float
    method: str


def _mask(weight: Array, pruning: Pruning, moment: Moment | None) -> Array:
    scores = np.square(weight)
    if pruning.method == "wanda":
        assert moment is not None
        scores *= np.square(moment.channels)
    return kept(scores, pruning.pattern, pruning.sparsity, per_row=pruning.method == "wanda")


class _PrunedWeight:
    """A weight and its pruning. Held: a bit for each element, and what SparseGPT has moved, once known."""

    __slots__ = ("_find", "_kept", "_mask", "source", "turned")

    def __init__(
        self,
        source: ir.TensorProtocol,
        turned: bool,
        find: Callable[[Array], tuple[Array | None, Array]],
    ) -> None:
        self.source, self.turned, self._find = source, turned, find
        self._mask: Array | None = None
        self._kept: Array | None = None

    def tensor(self) -> ir.TensorProtocol:
        dtype = self.source.dtype.numpy()
        if self._mask is None:
            weight = self._rows(self.source.numpy()).astype(np.float32)
            moved, mask = self._find(weight)
            self._mask = np.packbits(mask)
            self._kept = None if moved is None else moved[mask].astype(dtype)
        shape = self._rows(np.empty(self.source.shape.numpy(), np.bool_)).shape
        mask = np.unpackbits(self._mask, count=self.source.size).reshape(shape).astype(np.bool_)
        if self._kept is None:
            made = np.where(mask, self._rows(self.source.numpy()), np.zeros((), dtype))
        else:
            made = np.zeros(shape, dtype)
            made[mask] = self._kept
        return ir.Tensor(np.ascontiguousarray(self._rows(made)), dtype=self.source.dtype)

    def _rows(self, array: Array) -> Array:
        """As [rows, columns]; and back."""
        return array.T if self.turned else array


_KNOWN: WeakValueDictionary[tuple[object, ...], ir.LazyTensor] = WeakValueDictionary()
"""By what they are made of, which they hold."""


@dataclass(slots=True)
class Pruner:
    """Makes pruned weights of one program. ``moments``: of activations, by name."""

    moments: Moments
    _factor: tuple[tuple[str, ...], Array] | None = field(default=None, init=False)

    def pruned(
        self, tensor: ir.TensorProtocol, turned: bool, pruning: Pruning, activations: tuple[str, ...]
    ) -> ir.TensorProtocol:
        """``tensor`` pruned, in its own orientation and dtype; ``turned``: it is stored [columns, rows].

        ``activations``: names of what it is multiplied with. The same tensor, which entries and clones
        of a program share, gives the same one while that lives.
        """
        data = None if pruning.method == "magnitude" else id(self.moments)
        key = id(tensor), turned, pruning, activations, data
        found = _KNOWN.get(key)
        if found is None:
            weight = _PrunedWeight(tensor, turned, lambda array: self._find(array, pruning, activations))
            shape = ir.Shape(tensor.shape.numpy())
            found = ir.LazyTensor(weight.tensor, dtype=tensor.dtype, shape=shape, name=tensor.name)
            _KNOWN[key] = found
        return found

    def _find(
        self, weight: Array, pruning: Pruning, activations: tuple[str, ...]
    ) -> tuple[Array | None, Array]:
        """The weight moved, if the method moves it, and what is kept of it."""
        if pruning.method != "sparsegpt":
            moment = self._moment(activations) if pruning.method == "wanda" else None
            return None, _mask(weight, pruning, moment)
        return sparsegpt(weight, self._factor_of(activations), pruning.pattern, pruning.sparsity)

    def _moment(self, activations: tuple[str, ...]) -> Moment:
        read = joined(activations, self.moments)
        assert read is not None, activations
        return read()

    def _factor_of(self, activations: tuple[str, ...]) -> Array:
        """Of the activations asked for last, held: weights that read the same come one after another."""
        if self._factor is None or self._factor[0] != activations:
            self._factor = activations, inverse_factor(self._moment(activations).matrix)
        return self._factor[1]
