"""Which units of a layer stay, and what its reading weight becomes without the others."""

from __future__ import annotations

from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.ir.constants import constant_tensor
from ...compiler.reference import Array
from ..base import decline
from ..moments import Moment, Moments
from .importance import Quota, corrected, greatest, moment_scores, surgeon
from .site import Site, axes_of, stored

METHODS = ("auto", "surgeon", "moment", "magnitude")
"""``surgeon``: by what removing costs once the rest is corrected, and corrected; ``moment``: by what the data
makes of it; ``magnitude``: by the weights alone; ``auto``: the first where the input was measured, else the
last."""


class Choice:
    """What stays of a site. ``kept``: bool[units]. ``error``: share of the output's power that is lost."""

    __slots__ = ("__weakref__", "_held", "columns", "error", "kept", "matrix", "method")

    def __init__(
        self, site: Site, tensor: ir.TensorProtocol, quota: Quota, method: str, moment: Moment | None
    ) -> None:
        self.method, self._held = method, (tensor, moment)
        matrix = None if moment is None else moment.matrix
        weight = site.rows(tensor)
        if method == "surgeon" and matrix is not None:
            self.kept = surgeon(weight, site.columns, matrix, quota)
        elif method == "moment" and matrix is not None:
            self.kept = greatest(moment_scores(weight, site.columns, matrix), quota)
        else:
            self.kept = greatest(_magnitudes(site, weight), quota)
        self.columns = np.flatnonzero(self.kept[site.columns])
        self.matrix = matrix if method == "surgeon" else None
        self.error = None if moment is None else _error(weight, self.applied(weight), moment)

    def applied(self, weight: Array) -> Array:
        """``weight`` [rows, columns] with what goes at zero, and the rest corrected if the method does."""
        made = np.zeros_like(weight)
        made[:, self.columns] = self.cut(weight)
        return made

    def cut(self, weight: Array) -> Array:
        """The same without the columns that go."""
        if self.matrix is None:
            return weight[:, self.columns]
        return corrected(weight, self.matrix, self.columns)


def _error(weight: Array, changed: Array, moment: Moment) -> float:
    return moment.error(changed - weight) / max(moment.error(weight), 1e-30)


def _magnitudes(site: Site, weight: Array) -> Array:
    """Product of the norms of a unit's parts: of the columns that read it and of all rows that make it."""
    count = int(site.columns.max()) + 1
    squares = np.bincount(site.columns, np.square(weight, dtype=np.float64).sum(0), count)
    for node in site.flow.producers:
        value, _ = stored(node)
        tensor = constant_tensor(value)
        assert tensor is not None
        for axis, units in axes_of(site.flow, node).items():
            array = np.square(np.moveaxis(tensor.numpy(), axis, 0).reshape(len(units), -1), dtype=np.float64)
            own = units >= 0
            squares = squares * np.bincount(units[own], array.sum(1)[own], count)
    return np.asarray(np.sqrt(squares))


_KNOWN: WeakValueDictionary[tuple[object, ...], Choice] = WeakValueDictionary()
"""By weights, quota and moment, which a choice holds: entries and trials of one compile choose once."""


def choice_of(
    site: Site, tensor: ir.TensorProtocol, quota: Quota, method: str, moments: Moments | None
) -> Choice:
    """What stays of ``site``; ``tensor``: its weight. Raises: NoMatch if the method lacks the moment."""
    x, turned = site.node.inputs[0], site.node.attributes.get_int("transA", 0)
    moment = None if x is None or moments is None or turned else moments.get(str(x.name))
    if moment is not None and moment.matrix.shape[0] != len(site.columns):
        moment = None
    if method == "auto":
        method = "magnitude" if moment is None else "surgeon"
    if moment is None and method != "magnitude":
        decline(f"its input was not measured: method={method} asks for calibration")
    pools = tuple(pool.tobytes() for pool in quota.pools)
    makers = tuple(id(constant_tensor(stored(node)[0])) for node in site.flow.producers)
    key = (id(tensor), makers, site.columns.tobytes(), pools, quota.count, quota.step, method, id(moment))
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = Choice(site, tensor, quota, method, moment)
    return found
