"""Opening an executable folder so that ``verify`` can be given a source model."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from ..compiler.artifact import Artifact
from ..compiler.errors import OptionError
from ..compiler.options import CompileOptions
from ..compiler.reference import Reference
from ..frontends.load import load
from ..runtime.executable import Executable


def open_folder(folder: str | PathLike[str], *, temporary: bool = False) -> Executable:
    """The executable in ``folder``. Raises: ArtifactError if it is missing, damaged or not ours."""
    artifact = Artifact(Path(folder))
    names = tuple(spec.name for spec in artifact.manifest.entries["main"].inputs)
    return Executable(artifact, lambda source: reference_of(source, names), temporary=temporary)


def reference_of(source: object, inputs: tuple[str, ...]) -> Reference:
    """The Reference of a source model or path. Raises: OptionError if it takes other inputs."""
    imported = load(source, CompileOptions())
    theirs = tuple(spec.name for spec in imported.program.inputs())
    if set(theirs) != set(inputs):
        fact = f"takes {', '.join(theirs)}, the executable {', '.join(inputs)}"
        raise OptionError("--reference", fact, "give the model it was compiled from")
    return imported.reference
