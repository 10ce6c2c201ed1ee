"""The cached decoder of a whole-sequence one: entry ``decode`` and how it is driven."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...compiler.program import Program
from ..base import NoMatch, Note, Pass, PassContext, PassResult, import_domains
from .build import build_decoder
from .past import without_past
from .values import sort_values
from .writer import PASS


@dataclass(frozen=True)
class DeriveCache(Pass):
    """Derive a cached decoder (entry ``decode``) from ids → logits, without knowing the architecture.

    Values that depend on the token ids are computed for new tokens only, if every operator but Attention
    keeps positions apart; what depends only on how many tokens there are (positions, rotary tables, masks)
    becomes what the whole sequence would have had at the new tokens' positions. Masks are recognised by
    evaluating them. A cache that the model came with is taken out first. ``main`` stays as it is.
    """

    name: ClassVar[str] = PASS

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Add the entry, or say why not."""
        if "decode" in program.entries or program.decoding is not None:
            return PassResult()
        graph = program.main.graph
        try:
            whole = without_past(program)
            built = build_decoder(program, sort_values(whole.main.graph))
        except NoMatch as left:
            notes = (Note(graph.name or "main", left.reason),) if left.reason else ()
            return PassResult(declined=notes)
        program.entries |= built.entries
        program.decoding = built.decoding
        program.dims = {**built.dims, **program.dims}
        import_domains(program)
        return PassResult(1, (Note("decode", built.note),))
