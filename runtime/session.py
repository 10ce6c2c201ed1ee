"""Opens a runner for a variant of an executable folder, by the backend that built it."""

from __future__ import annotations

from collections.abc import Sequence

from ..compiler.artifact import WEIGHTS, Artifact
from ..compiler.errors import ArtifactError
from ..compiler.options import Target
from .onnxruntime import Model, OnnxRuntimeRunner


def model_of(artifact: Artifact, variant: str | None = None, entry: str = "main") -> Model:
    """What a session of ``variant`` is made from. Raises: ArtifactError if it has no such entry."""
    name, record = artifact.variant(variant)
    if record.backend != "ort":
        fact = f"variant {name!r} was built by backend {record.backend!r}, which this version can't run"
        raise ArtifactError(str(artifact.folder), fact, "upgrade miaotui")
    if entry not in record.entries:
        fix = f"it has {', '.join(record.entries)}"
        raise ArtifactError(str(artifact.folder), f"variant {name!r} has no entry {entry!r}", fix)
    weights = artifact.weights()
    return Model(
        data=artifact.read(record.entries[entry]),
        signature=artifact.manifest.entries[entry],
        dims=artifact.manifest.dims,
        settings=record.settings,
        target=Target.parse(record.target),
        weights=None if weights is None else artifact.folder / WEIGHTS,
        held=weights,
        place=f"{artifact.folder.name} ({name})",
    )


def open_runner(
    artifact: Artifact,
    variant: str | None = None,
    *,
    entry: str = "main",
    threads: int | None = None,
    taps: Sequence[str] = (),
) -> OnnxRuntimeRunner:
    """A runner of ``variant`` (None: the default one). Raises: as ``model_of`` and ``OnnxRuntimeRunner``."""
    return OnnxRuntimeRunner(model_of(artifact, variant, entry), threads, taps)
