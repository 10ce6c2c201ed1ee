"""What the passes share that remove units of layers: the walk over their sites, options, the plan's say."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from ...compiler.errors import OptionError
from ...compiler.ir.constants import constant_tensor
from ...compiler.program import Program
from ...compiler.reference import Array
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline
from .choice import METHODS, Choice, choice_of
from .importance import Quota
from .removal import Cuts, moments_left, remove
from .site import Site

Pools: TypeAlias = "Sequence[Array]"
"""Units that lose equally many: all together, or group by group."""


def require_share(place: str, share: float) -> None:
    """Raises: OptionError unless it is a share of something."""
    if not 0 < share < 1:
        raise OptionError(place, f"share={share} is no share between 0 and 1", "give one such as 0.3")


@dataclass(frozen=True)
class PruneUnits(Pass):
    """Base of passes that remove units of layers.

    ``share``: of the units that go. ``method``: which go, ``METHODS``. ``keep``: parts of names of weights
    whose units all stay. The weight is that which reads the units; a plan has options by its name.
    """

    optional: ClassVar[bool] = False

    share: float = 0.3
    method: str = "auto"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        require_share(place, self.share)
        if self.method not in METHODS:
            raise OptionError(place, f"no method {self.method!r}", f"use one of {', '.join(METHODS)}")

    @abstractmethod
    def sites(self, node: ir.Node) -> list[tuple[Site, Pools]]:
        """Ways to remove units that ``node`` reads or makes. Raises: NoMatch."""

    @abstractmethod
    def quota(self, pools: Pools) -> Quota | None:
        """How many go; None if that is none."""

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every site of every entry, producers first."""
        work = _Work(self, context)
        for model in program.entries.values():
            for node in tuple(model.graph):
                if not node.metadata_props.get(self.mark):
                    work.visit(node)
        moments = moments_left(context.moments, work.left)
        return PassResult(len(work.hits), tuple(work.hits), tuple(work.declined), moments)

    @property
    def mark(self) -> str:
        """Marks nodes whose units were weighed: a second run would remove as many again."""
        return f"miaotui.{self.name.replace('-', '_')}"

    def choose(self, found: list[tuple[Site, Pools]], context: PassContext) -> tuple[Site, Choice]:
        """What stays, of the way that comes nearest to the share. Raises: NoMatch."""
        site = found[0][0]
        step = context.chosen(self, site.name)
        if step is None:
            decline("the budget keeps it")
        if any(part in site.name for part in step.keep):
            decline("is to be kept")
        ways = [(s, pools, q) for s, pools in found if (q := step.quota(pools)) is not None]
        if not ways:
            sizes = " or ".join(str(len(pools[0])) for _, pools in found)
            decline(f"{step.share:.0%} of {sizes} is none{step.rounding}")
        site, _, quota = min(ways, key=lambda way: abs(_removed(*way[1:]) - step.share))
        tensor = constant_tensor(site.weight)
        assert tensor is not None
        return site, choice_of(site, tensor, quota, step.method, context.moments)

    @property
    def rounding(self) -> str:
        """What a note says of how counts are rounded."""
        return ""


def _removed(pools: Pools, quota: Quota) -> float:
    return quota.count / len(pools[0])


@dataclass(slots=True)
class _Work:
    step: PruneUnits
    context: PassContext
    hits: list[Note] = field(default_factory=list)
    declined: list[Note] = field(default_factory=list)
    left: dict[str, Array] = field(default_factory=dict)
    cuts: Cuts = field(default_factory=dict)

    def visit(self, node: ir.Node) -> None:
        name = str(node.name)
        try:
            found = self.step.sites(node)
            name = found[0][0].name
            site, choice = self.step.choose(found, self.context)
        except NoMatch as left:
            if left.reason:
                self.declined.append(Note(name, left.reason))
            return
        remove(site, choice, self.step.name, self.cuts)
        node.metadata_props[self.step.mark] = "1"
        x = site.node.inputs[0]
        assert x is not None
        self.left[str(x.name)] = choice.columns
        density = round(float(np.mean(choice.kept)), 4)
        pattern = self.step.name.partition("-")[2]
        facts = {"shape": [len(choice.kept)], "pattern": pattern, "density": density, "method": choice.method}
        self.hits.append(Note(name, _said(choice), facts))


def _said(choice: Choice) -> str:
    kept, method = int(np.count_nonzero(choice.kept)), choice.method
    text = f"{kept} of {len(choice.kept)} kept by {method}"
    return text if choice.error is None else f"{text}, {choice.error:.2%} of the output's power lost"
