"""Attention heads removed: rows of query, key and value, columns of the output, counts in between."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ..base import decline, skip
from .flow import Blocked, rank, size
from .flow_attention import attention_heads
from .importance import Quota
from .site import Site, site_of
from .structured import Pools, PruneUnits

GROUPS = ("auto", "whole", "each")


@dataclass(frozen=True)
class PruneHeads(PruneUnits):
    """Remove the attention heads that matter least, and with them the rows and columns that serve them alone.

    ``share``: of a layer's heads that goes, rounded to whole ones. Where several query heads share a KV
    head, ``groups`` says what goes: ``whole`` groups with their KV head, which makes the cache smaller, or
    as many query heads of ``each``; ``auto``: what comes nearest to the share, whole groups if both do.
    ``method``, ``keep``: as for prune-channels; the weight is that of the output projection. A mask with a
    bias for every head is gathered.
    """

    name: ClassVar[str] = "prune-heads"

    share: float = 0.25
    groups: str = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups not in GROUPS:
            fact = f"no groups {self.groups!r}"
            raise OptionError(f"pass {self.name}", fact, f"use one of {', '.join(GROUPS)}")

    def sites(self, node: ir.Node) -> list[tuple[Site, Pools]]:
        """The heads of an Attention: its groups, and its query heads if groups have several."""
        if node.op_type != "Attention" or node.domain != "":
            skip()
        found: list[tuple[Site, Pools]] = []
        reason = ""
        try:
            counts = attention_heads(node)
            if counts is None:
                raise Blocked("their number is not known")
            queries, keys = counts
            group = queries // keys
            heads = np.arange(queries)
            ways = [("whole", heads // group, [np.arange(keys)])]
            if group > 1:
                ways.append(("each", heads, list(heads.reshape(keys, group))))
        except Blocked as blocked:
            decline(f"its heads stay: {blocked.reason}")
        for way, units, pools in ways:
            if self.groups in ("auto", way) or group == 1:
                try:
                    found.append((_site(node, units), pools))
                except Blocked as blocked:
                    reason = reason or blocked.reason
        return found or decline(f"its {queries} heads stay: {reason}")

    def quota(self, pools: Pools) -> Quota | None:
        """The share of every pool, half a head rounded down."""
        count = math.ceil(self.share * len(pools[0]) - 0.5)
        return Quota(pools, count) if 0 < count < len(pools[0]) else None


def _site(node: ir.Node, units: np.ndarray) -> Site:
    output = node.outputs[0]
    if rank(output) == 4:
        return site_of(output, 1, units)
    width = size(output, 2)
    if not isinstance(width, int):
        raise Blocked(f"the width of {output.name} is not known")
    return site_of(output, 2, units.repeat(width // len(units)))
