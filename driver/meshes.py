"""Meshes that a program can't be put on: all reasons at once, and the nearest that it can."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, product

import numpy as np
import onnx_ir as ir

from ..compiler.cost.stages import Chain, stage_bounds
from ..compiler.errors import OptionError, Problem
from ..compiler.ir.cut import reads
from ..compiler.parallel.mesh import Mesh
from ..compiler.parallel.plan import Plan
from ..compiler.program import Program
from ..passes.partition.data import batch_problems
from ..passes.partition.pipeline import chain_of
from ..passes.partition.tensor import head_problems

_MOST = 64
"""Stages and shards that are looked at for what is near."""


def refuse_mesh(program: Program, mesh: Mesh, memory: int | None = None) -> None:
    """Raise OptionError with every reason why ``program`` can't be put on ``mesh``, and what is possible.

    ``memory``: bytes of weights that a device holds, None for any.
    """
    entry = "main" if program.decoding is None else program.decoding.entry
    chain = chain_of(program, entry)
    problems = [*_stages(chain, mesh), *_rows(program, mesh), *head_problems(program, mesh.tp)]
    fits = _fitting(program, entry, chain, memory)
    if not problems and memory is not None and not fits(mesh):
        problems = [_overfull(program, mesh, memory)]
    if not problems:
        return
    near = list(_near(program, chain, mesh, fits))
    fix = f"nearest: {' or '.join(map(spelled, near))}" if near else "no mesh of these devices can"
    raise OptionError.of([*problems, Problem(f"{spelled(mesh)}", "is not possible", fix)])


def refuse_memory(plan: Plan, memory: int | None) -> None:
    """Raise OptionError naming every stage and shard whose weights are more than ``memory``."""
    problems = [
        Problem(
            f"stage {share.stage} shard {share.shard}",
            f"has {_told(share.memory)} of weights, a device holds {_told(memory)}",
            "use more stages",
        )
        for share in plan.shares
        if memory is not None and share.memory > memory
    ]
    if problems:
        raise OptionError.of(problems)


def spelled(mesh: Mesh) -> str:
    """As it is asked for: ``--dp 2 --pp 4``.

    >>> spelled(Mesh(dp=2, pp=4)), spelled(Mesh())
    ('--dp 2 --pp 4', 'one piece')
    """
    sizes = {"--dp": mesh.dp, "--pp": mesh.pp, "--tp": mesh.tp}
    return " ".join(f"{flag} {size}" for flag, size in sizes.items() if size > 1) or "one piece"


def most_stages(chain: Chain) -> int:
    """Into how many stages a chain can be cut."""
    return 1 + int(np.isfinite(chain.live[1 : len(chain.seconds)]).sum())


def _stages(chain: Chain, mesh: Mesh) -> Iterator[Problem]:
    most, nodes = most_stages(chain), len(chain.seconds)
    if mesh.pp > nodes:
        yield Problem(
            "--pp", f"{mesh.pp} stages for {nodes} nodes: a stage has one at least", f"use at most {most}"
        )
    elif mesh.pp > most:
        fact = f"{mesh.pp} stages for {most - 1} places to cut: a state tensor stays in one stage"
        yield Problem("--pp", fact, f"use at most {most}")


def _rows(program: Program, mesh: Mesh) -> list[Problem]:
    return batch_problems(program) if mesh.dp > 1 else []


def _fitting(program: Program, entry: str, chain: Chain, memory: int | None) -> Callable[[Mesh], bool]:
    """Whether a mesh's ranks hold their weights. A tensor that two stages read lies in both."""
    nodes = list(program.entries[entry].graph)

    def fits(mesh: Mesh) -> bool:
        if memory is None:
            return True
        limit = float(memory * mesh.tp)
        try:
            bounds = stage_bounds(chain, mesh.pp, limits=[limit] * mesh.pp)
        except OptionError:
            return False
        return all(_bytes(nodes[begin:end]) <= limit for begin, end in pairwise(bounds))

    return fits


def _bytes(nodes: list[ir.Node]) -> int:
    held = {
        id(value.const_value): value.const_value.nbytes
        for node in nodes
        for value in reads(node)
        if value.is_initializer() and value.const_value is not None
    }
    return sum(held.values())


def _overfull(program: Program, mesh: Mesh, memory: int) -> Problem:
    entry = "main" if program.decoding is None else program.decoding.entry
    size = _bytes(list(program.entries[entry].graph))
    fact = f"{_told(size)} of weights do not fit {spelled(mesh)} with {_told(memory)} a device"
    return Problem("--memory", fact)


def _near(program: Program, chain: Chain, mesh: Mesh, fits: Callable[[Mesh], bool]) -> Iterator[Mesh]:
    """The nearest meshes that are possible: of no more devices, and if memory is short, of more."""
    shards = [n for n in range(1, min(_MOST, mesh.tp) + 1) if not head_problems(program, n)]
    stages = range(1, min(most_stages(chain), _MOST) + 1)
    rows = range(1, mesh.dp + 1) if not batch_problems(program) else [1]
    options = sorted(
        (Mesh(*sizes) for sizes in product(rows, stages, shards)), key=lambda m: _distance(m, mesh)
    )
    found = 0
    for option in options:
        if option != mesh and fits(option):
            yield option
            found += 1
            if found == 2:
                return


def _distance(mesh: Mesh, asked: Mesh) -> tuple[int, ...]:
    """Axes that differ, then devices that are lost or added."""
    axes = [(mesh.dp, asked.dp), (mesh.pp, asked.pp), (mesh.tp, asked.tp)]
    return sum(a != b for a, b in axes), abs(mesh.size - asked.size), sum(abs(a - b) for a, b in axes)


def _told(size: int | None) -> str:
    count = size or 0
    return f"{count / 2**20:,.1f} MiB" if count >= 1 << 20 else f"{count:,} bytes"
