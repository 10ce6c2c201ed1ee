"""Write a partitioned program: the models and weights of each share in a folder of its own, and plan.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from ..artifact import record_file, walk_files
from ..codegen.base import Backend
from ..codegen.onnxruntime.state import is_in_place
from ..errors import UnsupportedError
from ..ir.protos import proto_without_weights
from ..manifest import IN_PLACE, Entry
from ..options import Target
from ..program import Decoding, Program, StateTensor
from ..weights import WeightStore, stored_bytes
from .devices import write_devices
from .mesh import Mesh
from .plan import PLAN, Part, Plan

ANNOTATED = "annotated"
"""Folder of the whole program with its stages and shardings, for tools: no worker reads it."""

WEIGHTS = "weights.bin"
"""A share's tensors, in its folder; backends that pack them have a file of their own."""


@dataclass(frozen=True, slots=True)
class Built:
    """Programs of one share as files of a plan's folder.

    ``parts``: one for each entry, by its name. ``weights``: the file of their large tensors, None if they
    have none. ``memory``: bytes of all.
    """

    parts: dict[str, Part]
    weights: str | None
    memory: int


def build_share(
    program: Program,
    backend: Backend,
    target: Target,
    folder: Path,
    stage: int,
    shard: int = 0,
    kept: Sequence[StateTensor] = (),
) -> Built:
    """Build every entry of ``program`` for the ranks at ``stage`` and ``shard``.

    ``kept``: tensors that live between runs; ``program.decoding`` has their part in decoding, if it has any.
    Raises: UnsupportedError if the backend can't keep state in several parts; else as the backend.
    """
    if not program.entries:
        return Built({}, None, 0)
    place = f"stage{stage}.shard{shard}"
    (folder / place).mkdir(parents=True)
    own_state = {entry: _held(model, kept) for entry, model in program.entries.items()}
    program = replace(program, decoding=_decoding(program, backend, own_state, place))
    weights = f"{place}/{WEIGHTS}"
    with WeightStore(folder / weights) as store:
        build = backend.build(program, target, folder / place, store)
        stored, memory = store.size, stored_bytes(program)
    if not stored:
        (folder / weights).unlink()
    packed = build.settings.get("weights")
    if packed is not None:
        weights = f"{place}/{packed}"
        stored = memory = (folder / weights).stat().st_size
    parts = {
        entry: Part(
            backend.name,
            entry,
            f"{place}/{file}",
            Entry(program.inputs(entry), program.outputs(entry)),
            _settings(build.settings, backend, program.entries[entry], own_state[entry]),
        )
        for entry, file in build.entries.items()
    }
    return Built(parts, weights if stored else None, memory)


def _held(model: ir.Model, kept: Sequence[StateTensor]) -> tuple[StateTensor, ...]:
    names = {value.name for value in model.graph.inputs}
    return tuple(tensor for tensor in kept if tensor.input in names)


def _decoding(
    program: Program, backend: Backend, state: Mapping[str, Sequence[StateTensor]], place: str
) -> Decoding | None:
    """What the backend is told of the one part that keeps state; ONNX Runtime needs no telling."""
    parts = [entry for entry, tensors in state.items() if tensors]
    if program.decoding is None or backend.name == "ort" or not parts:
        return None
    if len(parts) > 1:
        fact = f"{backend.name} keeps state in one part of a stage, not in {', '.join(parts)}"
        raise UnsupportedError(place, fact, "use --backend ort")
    (entry,) = parts
    return replace(program.decoding, entry=entry, state=tuple(state[entry]))


def _settings(
    settings: Mapping[str, str], backend: Backend, model: ir.Model, state: Sequence[StateTensor]
) -> dict[str, str]:
    found = dict(settings)
    if backend.name == "ort" and state and is_in_place(model, Decoding(0, tuple(state))):
        found[IN_PLACE] = "1"
    return found


def write_annotated(program: Program, mesh: Mesh, folder: Path) -> None:
    """Every entry of the whole program, without its weights, as ONNX whose metadata says what lies where."""
    (folder / ANNOTATED).mkdir(parents=True)
    for entry, model in program.entries.items():
        copy = model.clone()
        write_devices(copy, mesh)
        (folder / ANNOTATED / f"{entry}.onnx").write_bytes(proto_without_weights(copy).SerializeToString())


def written(plan: Plan, folder: Path) -> Plan:
    """``plan`` with size and hash of every file in ``folder``, written beside them.

    Raises: ArtifactError if it contradicts itself.
    """
    complete = replace(plan, files={name: record_file(folder / name) for name in walk_files(folder)})
    text = complete.dumps()
    Plan.loads(text, PLAN)
    (folder / PLAN).write_text(text, "utf-8")
    return complete
