"""Opens a runner for a variant of an executable folder, by the backend that built it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TypeAlias

from ..compiler.artifact import WEIGHTS, Artifact
from ..compiler.errors import ArtifactError
from ..compiler.manifest import Entry, Segment, Variant
from ..compiler.options import Target
from ..compiler.parallel.plan import PLAN
from .base import Model, Runner
from .parallel.options import ParallelOptions
from .row_by_row import is_row_by_row

Opener: TypeAlias = Callable[[Artifact, Variant, str, Entry, str], Model]


def model_of(
    artifact: Artifact,
    variant: str | None = None,
    entry: str = "main",
    parallel: ParallelOptions | None = None,
) -> Model:
    """What a runner of ``variant`` is opened from. Raises: ArtifactError if it has no such entry.

    ``parallel``: how it is run if it is partitioned, which is where its entries' file is a plan.
    """
    name, record = artifact.variant(variant)
    if is_partitioned(record):
        return _partitioned(artifact, name, record, entry, parallel or ParallelOptions())
    if record.backend not in _BACKENDS:
        fact = f"variant {name!r} was built by backend {record.backend!r}, which this version can't run"
        raise ArtifactError(str(artifact.folder), fact, "upgrade miaotui")
    _has(artifact, name, record, entry)
    signature, place = artifact.manifest.signature(entry, record.role), f"{artifact.folder.name} ({name})"
    return _BACKENDS[record.backend](artifact, record, entry, signature, place)


def open_runner(
    artifact: Artifact,
    variant: str | None = None,
    *,
    entry: str = "main",
    threads: int | None = None,
    taps: Sequence[str] = (),
    parallel: ParallelOptions | None = None,
) -> Runner:
    """A runner of ``variant`` (None: the default one). Raises: as ``model_of`` and the backend's runner."""
    return model_of(artifact, variant, entry, parallel).open(threads, taps)


def is_partitioned(record: Variant) -> bool:
    """Whether a variant's entries are run by the ranks of a plan, which stands in for their files."""
    return any(PurePosixPath(file).name == PLAN for file in record.entries.values())


def _has(artifact: Artifact, name: str, record: Variant, entry: str) -> None:
    if entry not in record.entries:
        fix = f"it has {', '.join(record.entries)}"
        raise ArtifactError(str(artifact.folder), f"variant {name!r} has no entry {entry!r}", fix)


def _partitioned(
    artifact: Artifact, name: str, record: Variant, entry: str, options: ParallelOptions
) -> Model:
    from .parallel.runner import ParallelModel

    _has(artifact, name, record, entry)
    return ParallelModel(
        folder=(artifact.folder / record.entries[entry]).parent,
        signature=artifact.manifest.signature(entry, record.role),
        entry=entry,
        decoding=artifact.manifest.decoding,
        dims=artifact.manifest.dims,
        target=Target.parse(record.target),
        options=options,
        place=f"{artifact.folder.name} ({name})",
    )


def _chain(artifact: Artifact, record: Variant, entry: str, signature: Entry, place: str) -> Model:
    from .chain import ChainModel

    if entry not in record.segments:
        raise ArtifactError(place, f"names no segments of entry {entry!r}", "compile the model again")
    return ChainModel(
        models=tuple(_part(artifact, record, part, place) for part in record.segments[entry]),
        signature=signature,
        dims=artifact.manifest.dims,
        target=Target.parse(record.target),
        place=place,
    )


def _part(artifact: Artifact, record: Variant, part: Segment, place: str) -> Model:
    if part.backend not in _BACKENDS or part.backend == record.backend:
        fact = f"has a segment of backend {part.backend!r}, which this version can't run"
        raise ArtifactError(place, fact, "upgrade miaotui")
    alone = replace(
        record, backend=part.backend, entries={part.entry: part.file}, settings=part.settings, segments={}
    )
    return _BACKENDS[part.backend](artifact, alone, part.entry, part.signature, f"{place} {part.entry}")


def _onnxruntime(artifact: Artifact, record: Variant, entry: str, signature: Entry, place: str) -> Model:
    from .onnxruntime import OnnxRuntimeModel

    weights, decoding = artifact.weights(), artifact.manifest.decoding
    cuda = Target.parse(record.target).device == "cuda"
    steps = cuda and decoding is not None and decoding.entry == entry
    return OnnxRuntimeModel(
        data=artifact.read(record.entries[entry]),
        signature=signature,
        dims=artifact.manifest.dims,
        settings=record.settings,
        target=Target.parse(record.target),
        weights=None if weights is None else artifact.folder / WEIGHTS,
        held=weights,
        place=place,
        stepping=decoding.lengths if decoding is not None and steps else None,
        captures=cuda and decoding is None,
        row_by_row=decoding.tokens if decoding is not None and steps and is_row_by_row(record) else None,
    )


def _native(artifact: Artifact, record: Variant, entry: str, signature: Entry, place: str) -> Model:
    from .native import NativeModel

    library, weights = record.entries[entry], record.weights
    if weights is None:
        raise ArtifactError(place, "names no weight file", "compile the model again")
    return NativeModel(
        library=artifact.folder / library,
        weights=artifact.folder / weights,
        signature=signature,
        entry=entry,
        state=_state(artifact, entry),
        dims=artifact.manifest.dims,
        target=Target.parse(record.target),
        held_library=artifact.file(library),
        held_weights=artifact.file(weights),
        place=place,
    )


def _tvm(artifact: Artifact, record: Variant, entry: str, signature: Entry, place: str) -> Model:
    from .tvm import PARAMETERS, TvmModel

    library, weights = record.entries[entry], artifact.weights()
    return TvmModel(
        library=artifact.folder / library,
        weights=None if weights is None else artifact.folder / WEIGHTS,
        signature=signature,
        parameters=record.settings[PARAMETERS],
        entry=entry,
        state=_state(artifact, entry),
        dims=artifact.manifest.dims,
        target=Target.parse(record.target),
        held_library=artifact.file(library),
        held_weights=weights,
        place=place,
    )


def _state(artifact: Artifact, entry: str) -> dict[str, str]:
    """Input → output of the tensors that live between runs of an entry."""
    decoding = artifact.manifest.decoding
    if decoding is None or decoding.entry != entry:
        return {}
    return {tensor.input: tensor.output for tensor in decoding.state}


_BACKENDS: dict[str, Opener] = {"ort": _onnxruntime, "native": _native, "tvm": _tvm, "ort+tvm": _chain}
