"""Hidden channels of MLPs, and of convolutions in a chain, removed: every matrix that holds them smaller."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ..approximation import Approximation
from ..base import NoMatch, PassContext, decline, skip
from ..weight_uses import WeightUses
from .choice import choice_of
from .flow import Blocked, rank, size
from .flow_layers import ELEMENTWISE
from .importance import Quota
from .site import Site, site_of, stored
from .structured import Pools, PruneUnits

PRODUCTS = ("MatMul", "Gemm", "Conv")

PASSING = frozenset(
    {*ELEMENTWISE, "Split", "Slice", "Reshape", "Squeeze", "Unsqueeze", "BatchNormalization"}
    | {"GlobalAveragePool", "AveragePool", "MaxPool", "Concat"}
)
"""What may stand between the product that makes channels and the one that reads them."""


@dataclass(frozen=True)
class PruneChannels(PruneUnits):
    """Remove the hidden channels of MLPs that matter least: rows of one matrix, columns of the next.

    A channel is found by following the data from the product that reads it through elementwise operators
    to those that make it (gate and up, or one fused matrix), biases included; convolutions in a chain
    likewise. Where something else reads them, too, all stay. ``share``: of a layer's channels that goes;
    what stays is a multiple of ``multiple``, with which kernels are fast. ``method``: ``surgeon`` picks by
    what each costs once the others make up for it, and corrects the reading weight in least squares on
    measured activations (Optimal Brain Surgeon; ZipLM, arXiv 2302.04089), ``moment`` picks by its share in
    the output, ``magnitude`` by the weights alone, ``auto`` is the first where activations were measured,
    else the last. ``keep``: parts of names of reading weights that are left alone.
    """

    name: ClassVar[str] = "prune-channels"

    multiple: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multiple < 1:
            fact = f"multiple={self.multiple} is less than 1"
            raise OptionError(f"pass {self.name}", fact, "use 16, or 1 for any count")

    def sites(self, node: ir.Node) -> list[tuple[Site, Pools]]:
        """The channels that a product reads, if another makes them."""
        if (
            node.op_type not in PRODUCTS
            or node.domain != ""
            or not (_has_weight(node) and _reads_a_product(node))
        ):
            skip()
        if node.attributes.get_int("group", 1) > 1:
            skip()
        x = node.inputs[0]
        assert x is not None
        axis = 1 if node.op_type == "Conv" else rank(x) - 1
        if node.op_type == "Gemm":
            axis = 0 if node.attributes.get_int("transA", 0) else 1
        count = size(x, axis)
        if not isinstance(count, int):
            decline("how many channels it reads is not known")
        units = np.arange(count)
        try:
            site = site_of(x, axis, units)
        except Blocked as blocked:
            decline(f"the {count} channels that {stored(node)[0].name} reads stay: {blocked.reason}")
        return [(site, [units])]

    def quota(self, pools: Pools) -> Quota | None:
        """The share, rounded so that a multiple stays."""
        (pool,) = pools
        whole = max(1, round(len(pool) * (1 - self.share) / self.multiple)) * self.multiple
        gone = len(pool) - whole
        return Quota(pools, gone, self.multiple) if gone > 0 else None

    @property
    def rounding(self) -> str:
        """Kept counts are multiples."""
        return f" if what stays is a multiple of {self.multiple}"

    def approximation(
        self, name: str, tensor: ir.TensorProtocol, uses: WeightUses, context: PassContext
    ) -> Approximation | None:
        """The reading weight with what goes at zero; what the making weights lose is told apart."""
        if len(uses.multiplied) != 1 or any(part in name for part in self.keep):
            return None
        try:
            ((site, pools),) = self.sites(uses.multiplied[0])
            quota = self.quota(pools)
            if quota is None:
                return None
            choice = choice_of(site, tensor, quota, self.method, context.moments)
        except NoMatch:
            return None
        rows = choice.applied(site.rows(tensor))
        kept, elsewhere = len(choice.columns) / len(site.columns), 0
        for node in site.flow.producers:
            value, _ = stored(node)
            for units in site.flow.at(node, 1).values():
                lost = int((~choice.kept[units[units >= 0]]).sum())
                whole = 0 if value.const_value is None else value.const_value.nbytes
                elsewhere -= whole * lost // len(units)
        left = round(tensor.nbytes * kept)
        return Approximation(rows.T if site.turned else rows, left, left, kept, elsewhere)


def _reads_a_product(node: ir.Node) -> bool:
    """Whether the channels that ``node`` reads come of a product with a weight."""
    pending = [node.inputs[0]]
    seen: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        maker = None if value is None else value.producer()
        if value is None or maker is None or value in seen or maker.domain != "":
            continue
        seen.add(value)
        if maker.op_type in PRODUCTS and _has_weight(maker):
            return True
        if maker.op_type in PASSING:
            pending += maker.inputs
    return False


def _has_weight(node: ir.Node) -> bool:
    try:
        stored(node)
    except Blocked:
        return False
    return True
