"""narrow-heads: attention heads of fewer channels, those of queries and keys as well as those of values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ...compiler.errors import OptionError
from ...compiler.program import Program
from ..base import NoMatch, Note, Pass, PassContext, PassResult, decline
from ..moments import LazyMoments
from .flow import Blocked
from .narrowing import Attended, Narrowing
from .structured import require_share


@dataclass(frozen=True)
class NarrowHeads(Pass):
    """Give attention heads fewer channels: those that carry most of the scores, and most of the output.

    Values and output projection are written in the basis in which the first channels of each KV head give
    most of the output (activation-aware SVD, head by head), and the projection is fitted to them in least
    squares; queries and keys likewise, for the scores. ``share``: of the channels that goes, rounded so that
    no more goes and a multiple of ``multiple`` stays, with which kernels are fast. ``values_alone``: narrow
    the values where the keys have to stay as they are, because a rotary embedding turns them in pairs (a
    quarter of SmolLM2's frequencies less is nine times the perplexity) or a norm sums over them; not every
    kernel takes heads of two sizes. ``keep``: parts of names of output projections whose heads stay.
    """

    name: ClassVar[str] = "narrow-heads"
    optional: ClassVar[bool] = False

    share: float = 0.3
    multiple: int = 8
    values_alone: bool = False
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        place = f"pass {self.name}"
        require_share(place, self.share)
        if self.multiple < 1:
            raise OptionError(place, f"multiple={self.multiple} is less than 1", "use 8, or 1 for any count")

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Every Attention of every entry."""
        hits: list[Note] = []
        declined: list[Note] = []
        narrowing = Narrowing(self.name, {} if context.moments is None else context.moments)
        for model in program.entries.values():
            for node in tuple(model.graph):
                if (node.domain, node.op_type) == ("", "Attention") and not node.metadata_props.get(_MARK):
                    name = str(node.name)
                    try:
                        found = Attended.of(node)
                        name = found.site.name
                        hits.append(self._narrowed(found, narrowing, context))
                    except (Blocked, NoMatch) as left:
                        declined.append(Note(name, f"its heads stay as they are: {left.reason}"))
        return PassResult(len(hits), tuple(hits), tuple(declined), LazyMoments(narrowing.left))

    def width(self, size: int) -> int:
        """Channels of ``size`` that stay. Raises: NoMatch if that is all."""
        left = math.ceil(size * (1 - self.share) / self.multiple - 1e-9) * self.multiple
        if left >= size:
            what = f"if a multiple of {self.multiple} stays"
            decline(f"{self.share:.0%} of {size} channels of a head is none {what}")
        return left

    def _narrowed(self, found: Attended, narrowing: Narrowing, context: PassContext) -> Note:
        step = context.chosen(self, found.site.name)
        if step is None:
            decline("the budget keeps them")
        if any(part in found.site.name for part in step.keep):
            decline("they are to be kept")
        size = found.read.size
        width, keys = step.width(size), step.width(found.keys.size)
        why, scores = "", 0.0
        try:
            pair = found.projections()
        except Blocked as blocked:
            if not step.values_alone:
                raise
            why = f"keys stay: {blocked.reason}"
        else:
            scores = narrowing.scores(found, pair, keys)
            found = Attended.of(found.node)  # one weight may make the values, too
        output = narrowing.values(found, width)
        found.node.metadata_props[_MARK] = "1"
        lost = f"{output:.2%} of the output's power lost, " + (why or f"{scores:.2%} of the scores'")
        text = f"{width} of {size} channels of each head kept, {lost}"
        facts = {"shape": [size], "pattern": "head channels", "density": round(width / size, 4)}
        return Note(found.site.name, text, {**facts, "method": "svd"})


_MARK = "miaotui.narrow_heads"
"""Marks nodes whose heads are narrow: a second run would take as many again."""
