"""Activations whose channels differ in size evened out, before they and their weights are rounded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar
from weakref import WeakValueDictionary

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.constants import constant, constant_tensor
from ...compiler.ir.rewrite import Rewriter
from ...compiler.program import Program
from ...compiler.reference import Array
from ..base import NoMatch, Note, Pass, PassContext, PassResult, skip
from ..moments import LazyMoments, Moment, Moments
from .channels import NORMS, Site, attention_site, gate_site, norm_site
from .exponent import best_exponent

_LIMIT = 30.0
"""Greatest and, inverted, least factor of a channel."""

MARK = "miaotui.smooth_activations"
"""Marks nodes whose channels were evened out: doing it twice would move what was measured before."""

_SITES: dict[str, Callable[[ir.Node, int], Site]] = {
    **dict.fromkeys(NORMS, norm_site), "Mul": gate_site, "Reshape": attention_site
}  # fmt: skip


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Move the size of channels from an activation into the weights that read it.

    Rounding a block of weights costs an output the more, the larger the activations are that they meet; and
    kernels of 8-bit products round each block of activations by its greatest: one large channel costs its
    neighbours their precision. What makes the activation is divided (a norm's scale; the rows of ``up``
    behind a gate; those of the values behind attention, whose result is linear in them), and the columns of
    the weights that read it are multiplied by the channels' measured root mean square to the power
    ``alpha``: the same result. ``auto`` looks in every place for the exponent with the least error of
    weights of ``bits`` and activations of 8 bits together. ``through``: go through gates and attention, not
    only norms. The moments of what was scaled are handed on.
    Sources: SmoothQuant, arXiv 2211.10438; AWQ, arXiv 2306.00978.
    """

    name: ClassVar[str] = "smooth-activations"
    alpha: str = "auto"
    bits: int = 8
    through: bool = True

    def __post_init__(self) -> None:
        if self.exponent is not None and not 0 <= self.exponent <= 1:
            raise OptionError(f"pass {self.name}", f"alpha={self.alpha} is not within 0 and 1", "use auto")
        if self.bits not in (4, 8):
            raise OptionError(f"pass {self.name}", f"bits={self.bits} is not offered", "use 8 or 4")

    @property
    def exponent(self) -> float | None:
        """``alpha`` as a number; None if it is looked for. Raises: OptionError."""
        try:
            return None if self.alpha == "auto" else float(self.alpha)
        except ValueError:
            fact = f"alpha={self.alpha} is no number"
            raise OptionError(f"pass {self.name}", fact, "use auto, or one from 0 to 1") from None

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every place whose channels were measured; entries that share weights stay sharing them."""
        hits: list[Note] = []
        declined: list[Note] = []
        work = _Work(context.moments or {}, self)
        for model in program.entries.values():
            for node in tuple(model.graph):
                if node.op_type not in (_SITES if self.through else NORMS) or node.domain != "":
                    continue
                try:
                    hits.append(Note(str(node.name), work.smooth(node)))
                except NoMatch as left:
                    if left.reason and node.op_type in NORMS:
                        declined.append(Note(str(node.name), left.reason))
        return PassResult(len(hits), tuple(hits), tuple(declined), LazyMoments(work.scaled))


@dataclass(slots=True)
class _Work:
    """``scaled``: moments of what was divided, by name. ``found``: factors by name, for entries to share."""

    moments: Moments
    options: SmoothActivations
    scaled: dict[str, Callable[[], Moment]] = field(default_factory=dict)
    found: dict[str, tuple[Array, float]] = field(default_factory=dict)

    def smooth(self, node: ir.Node) -> str:
        """Even out the channels of what one node gives."""
        name = str(node.outputs[0].name)
        if node.metadata_props.get(MARK) or name not in self.moments:
            skip()
        moment = self.moments[name]
        site = _SITES[node.op_type](node, len(moment.matrix))
        if name not in self.found:
            self.found[name] = self._factors(site, moment)
        factors, alpha = self.found[name]
        if alpha == 0:
            skip()
        each = site.spread(factors)
        at = Rewriter(node)
        for reader, index in site.vectors:
            vector = reader.inputs[index]
            array = constant(vector)
            assert vector is not None and array is not None
            divided = at.const((array / factors).astype(np.float32), f"{vector.name}.smooth")
            reader.replace_input_with(index, divided)
        for value, turned in site.weights.items():
            _scale(value, 1 / factors, 1 if turned else 0)
        for value, turned in site.readers.items():
            _scale(value, each, 0 if turned else 1)  # other contents, the same name
        node.metadata_props[MARK] = "1"
        moments = self.moments
        self.scaled[name] = lambda: _divided(moments[name], each)
        where = {"Mul": "through a gate: ", "Reshape": "through attention: "}.get(node.op_type, "")
        span = f"evened out by {factors.min():.2g} to {factors.max():.2g}"
        return f"{where}{len(each)} channels {span}, exponent {alpha:.2g}"

    def _factors(self, site: Site, moment: Moment) -> tuple[Array, float]:
        size, alpha = site.shared(moment.channels), self.options.exponent
        if alpha is None:
            weights = [_rows(value, turned) for value, turned in site.readers.items()]
            alpha = best_exponent(
                weights, moment, self.options.bits, lambda power: site.spread(_factors(size, power))
            )
        return _factors(size, alpha), alpha


def _rows(value: ir.Value, turned: bool) -> Array:
    tensor = constant_tensor(value)
    assert tensor is not None
    return tensor.numpy().T if turned else tensor.numpy()


_KNOWN: WeakValueDictionary[tuple[int, int, bytes], ir.LazyTensor] = WeakValueDictionary()
"""Scaled tensors by what they are made of, which they hold: the same for entries and clones of a program."""


def _scale(value: ir.Value, factors: Array, axis: int) -> None:
    """Multiply what is along ``axis`` of a weight; computed when it is read."""
    tensor = constant_tensor(value)
    assert tensor is not None
    wide = factors.astype(np.float32)
    key = id(tensor), axis, hashlib.sha256(wide.tobytes()).digest()
    found = _KNOWN.get(key)
    if found is None:
        found = _KNOWN[key] = ir.LazyTensor(
            lambda: ir.Tensor(tensor.numpy() * (wide[:, None] if axis == 0 else wide)),
            dtype=ir.DataType.FLOAT,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name,
        )
    value.const_value = found


def _divided(moment: Moment, factors: Array) -> Moment:
    short = factors.astype(np.float32)
    return Moment(moment.matrix / short / short[:, None], moment.rows)


def _factors(size: Array, alpha: float) -> Array:
    """What each channel is divided by, 1 in the geometric mean; channels that are always zero keep 1."""
    live = size > 1e-9
    root: Array = np.where(live, size.astype(np.float64), 1.0) ** alpha
    if live.any():
        root = np.where(live, root / np.exp(np.log(root[live]).mean()), 1.0)
    factors: Array = np.clip(root, 1 / _LIMIT, _LIMIT)
    return factors
