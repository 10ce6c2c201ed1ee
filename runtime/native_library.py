"""A native library in this process: the functions of its model.h, shared by all who opened that file."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
from _ctypes import dlclose
from collections import deque
from pathlib import Path
from typing import Any

from ..compiler.errors import ArtifactError, ToolError

_MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
"""``e_machine`` of an ELF file."""

_MAX_RANK = 8

_lock = threading.Lock()
_loaded: dict[tuple[int, int], Library] = {}
_leaving: deque[Library] = deque()
"""Closed, not yet unloaded: the garbage collector may close one while this thread holds the lock."""


class Tensor(ctypes.Structure):
    """``miaotui_tensor``: an input or output of an entry."""

    name: bytes
    dtype: int
    rank: int
    is_output: int
    is_state: int
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int),
        ("rank", ctypes.c_int),
        ("is_output", ctypes.c_int),
        ("is_state", ctypes.c_int),
    )


class Library:
    """Functions of one library file. ``Library.of`` gives the same object for the same file; ``close`` it.

    The file is loaded by its descriptor: by its name, the loader would take an older file for it that was
    loaded from the same path before.
    """

    def __init__(self, file: int, place: str) -> None:
        self._file, self._users = file, 0
        _check(file, place)
        path = Path(f"/proc/self/fd/{file}")
        try:
            self._library = ctypes.CDLL(str(path) if path.exists() else place)
            self.functions = self._library
            self._declare()
        except (OSError, AttributeError) as error:
            fact = f"can't be loaded: {error}"
            raise ArtifactError(place, fact, "compile the model again") from error

    @classmethod
    def of(cls, path: Path, held: int | None = None) -> Library:
        """The library at ``path``, or behind the descriptor ``held``.

        Raises: ToolError if it is another machine's, ArtifactError if it is none of ours.
        """
        try:
            file = os.dup(held) if held is not None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ArtifactError(str(path), f"can't be read: {error.strerror}") from error
        info = os.fstat(file)
        key = (info.st_dev, info.st_ino)
        with _lock:
            found = _loaded.get(key)
            if found is not None:
                os.close(file)
            else:
                try:
                    found = _loaded[key] = cls(file, str(path))
                except BaseException:
                    os.close(file)
                    raise
            found._users += 1
        _unload()
        return found

    def close(self) -> None:
        """Unload it if nobody else uses it."""
        _leaving.append(self)
        _unload()

    def _leave(self) -> None:
        self._users -= 1
        if self._users == 0:
            info = os.fstat(self._file)
            del _loaded[info.st_dev, info.st_ino]
            dlclose(self._library._handle)
            os.close(self._file)

    def _declare(self) -> None:
        pointer, text, sizes = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_int64)
        for name, result, *arguments in (
            ("last_error", text),
            ("open", pointer, text, ctypes.c_int),
            ("close", None, pointer),
            ("entry", ctypes.c_int, text),
            ("size_name", text, ctypes.c_int, ctypes.c_int),
            ("tensor_of", ctypes.POINTER(Tensor), ctypes.c_int, ctypes.c_int),
            ("shape", ctypes.c_int, ctypes.c_int, ctypes.c_int, sizes, sizes),
            ("run", ctypes.c_int, pointer, ctypes.c_int, pointer, pointer),
        ):
            function = getattr(self._library, f"miaotui_{name}")
            function.restype, function.argtypes = result, arguments

    def error(self) -> str:
        """What went wrong last in this thread."""
        text: bytes = self.functions.miaotui_last_error()
        return text.decode("utf-8", "replace")

    def sizes(self, entry: int) -> list[str]:
        """Names of an entry's sizes, in order."""
        return [name.decode() for name in _until_none(self.functions.miaotui_size_name, entry)]

    def tensors(self, entry: int) -> list[Tensor]:
        """An entry's inputs, then its outputs that are no state."""
        return [found.contents for found in _until_none(self.functions.miaotui_tensor_of, entry)]

    def shape(self, entry: int, tensor: int, rank: int, sizes: Any) -> tuple[int, ...] | None:
        """The shape of a tensor at these sizes; None if they are out of range."""
        shape = (ctypes.c_int64 * _MAX_RANK)()
        if self.functions.miaotui_shape(entry, tensor, sizes, shape):
            return None
        return tuple(shape[:rank])


def _unload() -> None:
    # Who can't have the lock leaves it to whoever holds it.
    while _leaving and _lock.acquire(blocking=False):
        try:
            while _leaving:
                _leaving.popleft()._leave()
        finally:
            _lock.release()


def _until_none(function: Any, entry: int) -> list[Any]:
    found: list[Any] = []
    while item := function(entry, len(found)):
        found.append(item)
    return found


def _check(file: int, place: str) -> None:
    """Refuse what the loader would map beyond the file's end, or load for another machine.

    Raises: ToolError if it is another machine's, ArtifactError if it is cut or no library.
    """
    size = os.fstat(file).st_size
    header = os.pread(file, 64, 0)
    if header[:6] != b"\x7fELF\x02\x01" or len(header) < 64:
        raise ArtifactError(place, "can't be loaded: is no 64-bit ELF library", "compile the model again")
    (machine,) = struct.unpack_from("<H", header, 18)
    name = _MACHINES.get(machine, f"machine {machine}")
    if name != platform.machine():
        fact = f"was built for {name}, this machine is {platform.machine()}"
        raise ToolError(place, fact, "compile the model for it, without --target cpu:...")
    (segments,) = struct.unpack_from("<Q", header, 32)
    width, count = struct.unpack_from("<HH", header, 54)
    table = os.pread(file, width * count, segments)
    ends = [segments + width * count]
    for at in range(0, len(table) - 55, max(width, 56)):
        offset, length = struct.unpack_from("<Q16xQ", table, at + 8)
        ends.append(offset + length)
    if max(ends) > size:
        raise ArtifactError(place, "can't be loaded: it is cut short", "compile the model again")
