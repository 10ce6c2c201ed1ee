"""External data: a tensor's bytes in another file, which must lie where the model may look."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


class ExternalData:
    """Resolves the external data of one model file.

    A location is a relative path below the model's folder. Where the model file itself is a symlink into
    a store of blobs, as in a hub cache (``snapshots/<revision>/model.onnx -> ../../blobs/<hash>``), its data
    may be symlinks into the same store. Everything else that leaves the folder is refused.
    """

    __slots__ = ("_allowed", "_sizes", "folder", "model")

    def __init__(self, model: Path) -> None:
        self.model = model
        self.folder = model.absolute().parent
        self._allowed = {self.folder.resolve()}
        if model.is_symlink():
            self._allowed.add(model.resolve().parent)
        self._sizes: dict[str, tuple[Path, int] | tuple[str, str]] = {}

    def problem(self, tensor: onnx.TensorProto, needed: int) -> tuple[str, str] | None:
        """What is wrong with the tensor's place, as fact and fix; else point the tensor at its real file.

        ``needed``: bytes that the tensor's dtype and shape take.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        try:
            offset, length = int(entries.get("offset", 0)), int(entries.get("length", needed))
        except ValueError:
            return "has an external offset or length that is no number", "export the model again"
        resolved = self._resolve(location)
        if isinstance(resolved[0], str):
            return str(resolved[0]), str(resolved[1])
        file, size = resolved[0], int(resolved[1])
        if length != needed:
            return f"takes {needed:,} bytes, its external length is {length:,}", "export the model again"
        if offset < 0 or offset + length > size:
            fact = f"needs bytes {offset:,} to {offset + length:,} of {location!r}, which has {size:,}"
            return fact, "copy or download the data file again"
        del tensor.external_data[:]
        for key, value in (("location", str(file)), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=key, value=value)
        return None

    def _resolve(self, location: str) -> tuple[Path, int] | tuple[str, str]:
        if location not in self._sizes:
            self._sizes[location] = self._find(location)
        return self._sizes[location]

    def _find(self, location: str) -> tuple[Path, int] | tuple[str, str]:
        move = "keep the data file beside the model"
        if not location or "\0" in location:
            return "has no external location", "export the model again"
        absolute = PurePosixPath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
        if absolute or ".." in PureWindowsPath(location).parts:  # splits at both kinds of slash
            return f"lies at {location!r}, outside the model's folder", move
        path = self.folder / location
        try:
            real = path.resolve(strict=True)
            size = real.stat().st_size
        except FileNotFoundError:
            return f"lies in {location!r}, which does not exist", f"put the file into {self.folder}"
        except (OSError, RuntimeError, ValueError) as error:
            return f"lies in {location!r}, which can't be read ({error})", move
        if not any(real.is_relative_to(folder) for folder in self._allowed):
            return f"lies in {location!r}, a link to {real}, outside the model's folder", move
        if not real.is_file():
            return f"lies in {location!r}, which is no file", move
        return real, size
