"""Opening an executable folder so that ``verify`` can be given a source model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ..compiler.artifact import Artifact
from ..compiler.manifest import Manifest
from ..compiler.reference import Reference
from ..frontends.load import reference_of
from ..runtime.executable import Executable
from ..runtime.parallel.options import ParallelOptions


def open_folder(
    folder: str | PathLike[str], *, temporary: bool = False, executor: str = "threads"
) -> Executable:
    """The executable in ``folder``; ``executor``: what runs it where it is partitioned.

    Raises: ArtifactError if it is missing, damaged or not ours, OptionError for an unknown executor.
    """
    parallel = ParallelOptions.parse(executor)
    artifact = Artifact(Path(folder))
    return Executable(
        artifact, lambda source: resolve(source, artifact.manifest), temporary=temporary, parallel=parallel
    )


def resolve(source: object, manifest: Manifest) -> Reference:
    """The Reference of a source model or path. Raises: InputError if it has another signature."""
    main = manifest.entries["main"]
    return reference_of(source, main.inputs, main.outputs, manifest.call, list(manifest.layers))
