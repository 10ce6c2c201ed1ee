"""Tensor parallel: heads, channels and vocabulary over ranks, sums and joins of what they compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from ...compiler.errors import OptionError, Problem, UnsupportedError
from ...compiler.parallel.mesh import Mesh
from ...compiler.program import Program
from ..base import Note, Pass, PassContext, PassResult, import_domains
from ..sparsity.flow import Blocked
from .collectives import annotate
from .groups import Groups, head_owners
from .heads import form_of, head_counts


@dataclass(frozen=True)
class TensorParallel(Pass):
    """Split layers over ``size`` ranks: attention by heads, MLPs by channels, logits by vocabulary.

    A group of units is split if every node that touches it can be; the products that read it then give
    partial sums, behind which an AllReduce stands (Megatron-LM, arXiv 1909.08053). A cache is split with its
    KV heads; where there are fewer of them than ranks, several ranks hold the same one. Quantized weights are
    split between blocks, tables of ids by rows, tied ones like the logits. Where what reads them is in the
    way, what makes them is split and an AllGather joins them. All else stays whole on every rank, with a
    reason. ``vocabulary``: rows of a table, or outputs, that a rank must have for that to be worth it.
    Raises: OptionError if heads are not equal shares, UnsupportedError if nothing can be split.
    """

    name: ClassVar[str] = "tensor-parallel"
    optional: ClassVar[bool] = False

    size: int = 2
    vocabulary: int = 64

    def run(self, program: Program, context: PassContext) -> PassResult:
        """Annotate all entries, and put collectives between what is split and what is whole."""
        program.mesh = replace(program.mesh or Mesh(), tp=self.size)
        if self.size == 1:
            return PassResult()
        if problems := head_problems(program, self.size):
            raise OptionError.of(problems)
        hits: list[Note] = []
        declined: list[Note] = []
        for entry, model in program.entries.items():
            groups = Groups(model.graph, self.size, _state(program, entry), self.vocabulary)
            groups.search()
            annotate(groups, self.name)
            hits += groups.hits
            declined += groups.declined
        if not hits:
            reasons = list(dict.fromkeys(str(note) for note in declined))
            fact = f"none of its layers can be split over {self.size} ranks"
            told = "; ".join(reasons[:3]) or "no product reads what another makes"
            raise UnsupportedError(f"--tp {self.size}", f"{fact}: {told}", "use --pp or --dp instead")
        import_domains(program)
        return PassResult(len(hits), tuple(hits), tuple(declined))


def head_problems(program: Program, ranks: int) -> list[Problem]:
    """Attention whose heads are not ``ranks`` equal shares, with the nearest sizes of which all are."""
    counts = list(dict.fromkeys(_counts(program)))

    def fits(size: int) -> bool:
        return all(head_owners(*heads, size) is not None for heads in counts)

    if fits(ranks):
        return []
    most = max(queries for queries, _ in counts)
    below = next(size for size in range(min(ranks, most), 0, -1) if fits(size))
    near = [below, *(size for size in range(ranks, most + 1) if fits(size))][:2]
    fix = f"use --tp {' or --tp '.join(map(str, near))}"
    return [
        Problem(f"--tp {ranks}", f"{queries} query and {keys} KV heads have no {ranks} equal shares", fix)
        for queries, keys in counts
        if head_owners(queries, keys, ranks) is None
    ]


def _counts(program: Program) -> Iterator[tuple[int, int]]:
    for model in program.entries.values():
        for node in model.graph:
            if form_of(node) is not None:
                try:
                    yield head_counts(node)
                except Blocked:
                    continue


def _state(program: Program, entry: str) -> frozenset[ir.Value]:
    decoding = program.decoding
    if decoding is None or decoding.entry != entry:
        return frozenset()
    graph = program.entries[entry].graph
    names = {name for kept in decoding.state for name in (kept.input, kept.output)}
    return frozenset(value for value in (*graph.inputs, *graph.outputs) if value.name in names)
