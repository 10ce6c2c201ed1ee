"""An executable folder being written: everything beside its final place, then all at once into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from . import golden
from .artifact import AGAIN, GOLDEN, MANIFEST, WEIGHTS, Artifact, is_executable, record_file, walk_files
from .atomic import replace_folder, temporary_sibling
from .errors import ArtifactError
from .manifest import FileRecord, Manifest
from .weights import WeightStore

_CHUNK = 1 << 20
"""Bytes that are copied at a time."""


class Draft:
    """A folder being written beside its final place; ``finish`` puts it there, leaving without it drops it.

    >>> with Draft(folder) as draft:  # doctest: +SKIP
    ...     build = backend.build(program, target, draft.variant("optimized"), draft.weights)
    ...     draft.finish(manifest)
    """

    __slots__ = ("folder", "path", "weights")

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(os.path.realpath(folder))
        _refuse_foreign(self.folder)
        with _writing(self.folder):
            self.path = temporary_sibling(self.folder)
        try:
            with _writing(self.folder):
                (self.path / WEIGHTS).parent.mkdir()
            self.weights = WeightStore(self.path / WEIGHTS)
        except BaseException:
            shutil.rmtree(self.path, ignore_errors=True)
            raise

    def variant(self, name: str) -> Path:
        """The folder of variant ``name``, made if new."""
        folder = self.path / "variants" / name
        with _writing(self.folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def discard_variant(self, name: str) -> None:
        """Drop variant ``name``; its weights stay if another variant has the same."""
        shutil.rmtree(self.path / "variants" / name, ignore_errors=True)

    def asset(self, name: str, source: Path | bytes) -> None:
        """Carry ``source``, a file or contents (a tokenizer, a generation config), as ``name``."""
        target = self.path / name
        with _writing(self.folder):
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)

    def golden(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], entry: str = "main") -> None:
        """Keep ``inputs`` and the source framework's ``outputs``, to verify without the framework."""
        path = self.path / GOLDEN.format(entry=entry)
        with _writing(self.folder):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(golden.dumps(inputs, outputs))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file such as ``report.json``."""
        with _writing(self.folder):
            (self.path / name).write_text(text, encoding="utf-8")

    def finish(self, manifest: Manifest) -> Manifest:
        """Put the folder in its place, an older one of ours away; the manifest with files and date filled in.

        Raises: ArtifactError if it can't be written, or if something foreign came to lie there.
        """
        with _writing(self.folder):
            self.weights.close()
            known = {WEIGHTS: FileRecord(self.weights.size, self.weights.sha256)} if self.weights.size else {}
            if not (self.path / WEIGHTS).stat().st_size:
                shutil.rmtree((self.path / WEIGHTS).parent)
            files = {name: known.get(name) or record_file(self.path / name) for name in walk_files(self.path)}
            created = manifest.created or datetime.now(UTC).isoformat(timespec="seconds")
            manifest = replace(manifest, files=files, created=created)
            text = manifest.dumps()
            Manifest.loads(text, MANIFEST)  # what is written must be readable
            (self.path / MANIFEST).write_bytes(text.encode("utf-8", "surrogatepass"))
            _refuse_foreign(self.folder)
            replace_folder(self.path, self.folder)
        return manifest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.weights.abandon()
        shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the system's refusals into ours."""
    try:
        yield
    except OSError as error:
        place = error.filename or folder
        raise ArtifactError(
            str(folder), f"can't be written: {place}: {error.strerror}", "check space and permissions"
        ) from error


@contextmanager
def _reading(folder: Path, name: str) -> Iterator[BinaryIO]:
    """A file of an executable folder. Raises: ArtifactError that says whether it or the folder is gone."""
    try:
        file = (folder / name).open("rb")
    except OSError as error:
        fact = f"{name} can't be read: {error.strerror}"
        if isinstance(error, FileNotFoundError):
            whole = not folder.exists()
            fact = "was removed since it was opened" if whole else f"{name} was removed since it was opened"
        fix = "compile the model again, with output=FOLDER if it is to outlive the process"
        raise ArtifactError(str(folder), fact, fix) from error
    with file:
        yield file


def _refuse_foreign(folder: Path) -> None:
    """An existing folder is replaced only if it is ours or empty."""
    if not folder.exists() or is_executable(folder):
        return
    if not folder.is_dir() or any(folder.iterdir()):
        raise ArtifactError(
            str(folder), "exists and is no executable folder", "name another, or remove it yourself"
        )


def copy(artifact: Artifact, folder: Path | str) -> Manifest:
    """Write ``artifact`` again as ``folder``, checking every file against its hash on the way.

    Raises: ArtifactError if a file is damaged or gone, or the folder can't be written.
    """
    with Draft(folder) as draft:
        for name, expected in artifact.manifest.files.items():
            target = draft.path / name
            with _reading(artifact.folder, name) as source, _writing(draft.folder):
                target.parent.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)
            if record_file(target) != expected:
                raise ArtifactError(str(artifact.folder / name), "differs from what was written", AGAIN)
        return draft.finish(artifact.manifest)
