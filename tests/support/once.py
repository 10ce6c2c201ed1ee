"""Made once in a run of the tests, whichever worker needs it first; the others wait for it."""

from __future__ import annotations

import fcntl
import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

_folder: Path | None = None


@contextmanager
def kept_in(folder: Path) -> Iterator[None]:
    """What ``once`` makes is kept in ``folder``, which several processes may share."""
    folder.mkdir(parents=True, exist_ok=True)
    with patch(f"{__name__}._folder", folder):
        yield


def once(name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder ``name``; the first who asks has ``make`` write it to the path that it is given."""
    folder = _folder or _own_folder()
    path = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # freed with the file, or with a process that dies
        if not path.exists():
            unfinished = folder / f"{name}.unfinished"
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            make(unfinished)
            unfinished.replace(path)
    return path


@functools.cache
def _own_folder() -> Path:
    """Outside of pytest: of this process alone."""
    return Path(tempfile.mkdtemp(prefix="miaotui-once-"))
