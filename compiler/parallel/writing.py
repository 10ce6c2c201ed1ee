"""Write a partitioned program: the models and weights of each share in a folder of its own, and plan.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from ..artifact import record_file, walk_files
from ..codegen.base import Backend
from ..manifest import Entry
from ..options import Target
from ..program import Program
from ..weights import WeightStore
from .plan import PLAN, Part, Plan


@dataclass(frozen=True, slots=True)
class Built:
    """Programs of one share as files of a plan's folder.

    ``parts``: one for each entry, by its name. ``weights``: the file of their tensors, None if they have
    none. ``memory``: its bytes.
    """

    parts: dict[str, Part]
    weights: str | None
    memory: int


def build_share(
    program: Program, backend: Backend, target: Target, folder: Path, stage: int, shard: int = 0
) -> Built:
    """Build every entry of ``program`` for the ranks at ``stage`` and ``shard``. Raises: as the backend."""
    place = f"stage{stage}.shard{shard}"
    (folder / place).mkdir(parents=True)
    weights = f"{place}/weights.bin"
    with WeightStore(folder / weights) as store:
        build = backend.build(program, target, folder / place, store)
        size = store.size
    if not size:
        (folder / weights).unlink()
    parts = {
        entry: Part(
            backend.name,
            entry,
            f"{place}/{file}",
            Entry(program.inputs(entry), program.outputs(entry)),
            build.settings,
        )
        for entry, file in build.entries.items()
    }
    return Built(parts, weights if size else None, size)


def written(plan: Plan, folder: Path) -> Plan:
    """``plan`` with size and hash of every file in ``folder``, written beside them.

    Raises: ArtifactError if it contradicts itself.
    """
    complete = replace(plan, files={name: record_file(folder / name) for name in walk_files(folder)})
    text = complete.dumps()
    Plan.loads(text, PLAN)
    (folder / PLAN).write_text(text, "utf-8")
    return complete
