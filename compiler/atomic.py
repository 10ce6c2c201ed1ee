"""Write a folder whole or not at all: a temporary sibling that takes the folder's place in one step."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def temporary_sibling(folder: Path) -> Path:
    """A new empty folder beside ``folder``, named after this process; removes leftovers of dead ones."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    for stale in _siblings(folder, "tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    path = _name(folder, "tmp")
    path.mkdir()
    return path


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put ``temporary`` in the place of ``folder`` and delete what was there.

    A kill at any moment leaves the old or the new folder whole under its name. Where the system can't
    exchange two folders in one step, the name may be free between two renames; ``recover`` mends that.
    """
    _sync(temporary)
    if not _rename(temporary, folder) and not _exchange(temporary, folder):
        aside = _name(folder, "old")
        folder.rename(aside)
        temporary.rename(folder)
        temporary = aside
    _sync_folder(folder.parent)
    if temporary.exists():
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> bool:
    """Rename to a name that is free or an empty folder's; False if it is another's."""
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def recover(folder: Path) -> None:
    """Bring back the folder that a writer killed between two renames had set aside."""
    for aside in _siblings(folder, "old"):
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # a reader may lack the right, or another be faster
                aside.rename(folder)


def _name(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _siblings(folder: Path, kind: str) -> list[Path]:
    """Siblings of ``folder`` made by processes of this machine that no longer live."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.{kind}-{re.escape(_host())}-(\d+)-[0-9a-f]{{8}}")
    try:
        names = sorted(path.name for path in folder.parent.iterdir())
    except OSError:
        return []
    matches = [match for match in map(pattern.fullmatch, names) if match]
    return [folder.with_name(match[0]) for match in matches if not _is_alive(int(match[1]))]


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; False if the system or file system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(second))


def _sync(folder: Path) -> None:
    """Force all under ``folder`` to disk, so that the rename never precedes the contents."""
    for path, _, names in os.walk(folder):
        for name in names:
            with (Path(path) / name).open("rb") as file:
                os.fsync(file.fileno())
        _sync_folder(Path(path))


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
