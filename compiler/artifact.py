"""The executable folder as it is read: opened with its sizes checked, checked in full on demand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from . import golden
from .atomic import recover
from .closing import Closing
from .errors import ArtifactError, Problem
from .manifest import FORMAT, Certificate, Entry, FileRecord, Manifest, PassRecord, Variant
from .reference import Arrays

__all__ = [
    "Artifact",
    "Certificate",
    "Entry",
    "FileRecord",
    "Manifest",
    "PassRecord",
    "Variant",
    "check",
    "is_executable",
]

MANIFEST = "manifest.json"
WEIGHTS = "weights/weights.bin"
GOLDEN = "golden/{entry}.npz"

AGAIN = "compile the model again"

_MAX_MANIFEST = 256 << 20


class Artifact(Closing):
    """An opened executable folder. Keeps its model files open, so that it survives being replaced.

    Raises: ArtifactError if the folder is missing, not ours, of another schema, or has files missing or
    of another size than written.
    """

    __slots__ = ("_files", "folder", "manifest")

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).resolve()
        recover(self.folder)
        self._files: dict[str, BinaryIO] = {}
        self.manifest = read_manifest(self.folder)
        try:
            # A writer may replace the folder meanwhile: what is held must be of one writing.
            while self._open() != (manifest := read_manifest(self.folder)):
                self.manifest = manifest
        except BaseException:
            self.close()
            raise

    def _open(self) -> Manifest:
        self.close()
        if problems := list(_size_problems(self.folder, self.manifest)):
            if read_manifest(self.folder) != self.manifest:
                return self.manifest
            raise ArtifactError.of(problems)
        variants = self.manifest.variants.values()
        models = {file for variant in variants for file in variant.files}
        models |= {variant.weights for variant in variants if variant.weights is not None}
        others = {WEIGHTS, *(GOLDEN.format(entry=entry) for entry in self.manifest.entries)}
        for name in sorted(models | (others & self.manifest.files.keys())):
            try:
                self._files[name] = (self.folder / name).open("rb")
            except OSError as error:
                raise ArtifactError(str(self.folder / name), f"can't be read: {error.strerror}") from error
        return self.manifest

    def variant(self, name: str | None = None) -> tuple[str, Variant]:
        """Name and record of a variant; the default one for None. Raises: ArtifactError."""
        chosen = self.manifest.default if name is None else name
        if chosen not in self.manifest.variants:
            fix = f"it has {', '.join(self.manifest.variants)}"
            raise ArtifactError(str(self.folder), f"has no variant {chosen!r}", fix)
        return chosen, self.manifest.variants[chosen]

    def read(self, name: str) -> bytes:
        """Contents of a model file as it was when the folder was opened."""
        handle = self._files[name].fileno()
        return os.pread(handle, os.fstat(handle).st_size, 0)

    def file(self, name: str) -> BinaryIO:
        """A model or weight file as it was when the folder was opened."""
        return self._files[name]

    def weights(self) -> BinaryIO | None:
        """The weight file as it was when the folder was opened; None if all tensors are in the models."""
        return self._files.get(WEIGHTS)

    def golden(self, entry: str = "main") -> tuple[Arrays, dict[str, Any]] | None:
        """Inputs and the source framework's outputs that were kept for ``entry``; None if there are none.

        Raises: ArtifactError if the file is damaged.
        """
        name = GOLDEN.format(entry=entry)
        if name not in self.manifest.files:
            return None
        try:
            return golden.loads(self.read(name), self.manifest.signature(entry, "source").inputs)
        except Exception as error:  # zipfile and numpy raise a dozen kinds for damaged data
            raise ArtifactError(str(self.folder / name), f"can't be read: {error}", AGAIN) from error

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


def check(folder: Path | str) -> Manifest:
    """The manifest of ``folder`` after comparing the hash of every file.

    Raises: ArtifactError naming every file that is missing, truncated or changed.
    """
    with Artifact(folder) as artifact:
        problems = []
        for name, expected in artifact.manifest.files.items():
            if record_file(artifact.folder / name) != expected:
                place = str(artifact.folder / name)
                problems.append(Problem(place, "its contents differ from what was written", AGAIN))
        if problems:
            raise ArtifactError.of(problems)
        return artifact.manifest


def is_executable(folder: Path) -> bool:
    """Whether ``folder`` is an executable folder of ours, of any schema, damaged or not."""
    try:
        with (folder / MANIFEST).open("rb") as file:
            return f'"format": "{FORMAT}"'.encode() in file.read(4096)
    except OSError:
        return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of ``folder``. Raises: ArtifactError if there is none or it can't be trusted."""
    path = folder / MANIFEST
    try:
        if path.stat().st_size > _MAX_MANIFEST:
            raise ArtifactError(
                str(path), f"is larger than {_MAX_MANIFEST >> 20} MiB", "this is no executable folder"
            )
        text = path.read_bytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise ArtifactError(str(path), "is no UTF-8 text", AGAIN) from error
    except OSError as error:
        fact = (
            "does not exist"
            if not folder.exists()
            else f"is no executable folder: {MANIFEST}: {error.strerror}"
        )
        raise ArtifactError(str(folder), fact, "give a folder written by `compile`") from error
    return Manifest.loads(text, str(path))


def walk_files(folder: Path) -> Iterator[str]:
    """Names of all files under ``folder``, relative, with forward slashes, sorted."""
    yield from sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def record_file(path: Path) -> FileRecord:
    """Size and hash of a file. Raises: ArtifactError if it can't be read."""
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            return FileRecord(file.tell(), digest)
    except OSError as error:
        raise ArtifactError(str(path), f"can't be read: {error.strerror}") from error


def _size_problems(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    for name, expected in manifest.files.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            yield Problem(str(folder / name), f"can't be read: {error.strerror}", AGAIN)
            continue
        if size != expected.size:
            fact = f"has {size} bytes, not the {expected.size} that were written"
            yield Problem(str(folder / name), fact, AGAIN)
