"""What was measured once, on disk: small JSON files by the hash of what they were measured on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..compiler.places import cache_folder

FORMAT = "miaotui cache"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Cached:
    """A file of the cache. ``model``: what it was measured on, in words. ``entries``: figures it holds."""

    path: Path
    kind: str
    model: str
    entries: int
    size: int
    written: float


def key_of(*parts: object) -> str:
    """A hash of ``parts``, as their ``repr`` tells them."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def read(kind: str, key: str) -> dict[str, Any]:
    """Entries that were kept under ``key``; none if there is no such file, or it is damaged."""
    try:
        data = json.loads(_path(kind, key).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or (data.get("format"), data.get("schema")) != (FORMAT, SCHEMA):
        return {}
    entries = data.get("entries")
    whole = isinstance(entries, dict) and data.get("sha256") == _digest(entries)
    return dict(entries) if whole and isinstance(entries, dict) else {}


def write(kind: str, key: str, entries: Mapping[str, Any], model: str = "") -> None:
    """Keep ``entries``, plain JSON, under ``key``: all or nothing. Silent where nothing can be written."""
    path = _path(kind, key)
    data = {"format": FORMAT, "schema": SCHEMA, "kind": kind, "model": model}
    text = json.dumps({**data, "entries": dict(entries), "sha256": _digest(entries)}, indent=1)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def listed() -> Iterator[Cached]:
    """Every file of the cache, by name; one that can't be read has no entries."""
    folder = cache_folder()
    for path in sorted(folder.glob("*/*.json")):
        try:
            data, stat = json.loads(path.read_text("utf-8")), path.stat()
        except (OSError, ValueError, RecursionError):
            data, stat = {}, path.stat()
        if not isinstance(data, dict) or data.get("format") not in (None, FORMAT):
            continue  # foreign
        entries = data.get("entries")
        count = len(entries) if isinstance(entries, dict) else 0
        yield Cached(path, path.parent.name, str(data.get("model", "")), count, stat.st_size, stat.st_mtime)


def clean() -> tuple[int, int]:
    """Remove every file of the cache; how many there were, and their bytes."""
    found = list(listed())
    for cached in found:
        cached.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            cached.path.parent.rmdir()
    return len(found), sum(cached.size for cached in found)


def _path(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{key}.json"


def _digest(entries: Mapping[str, Any]) -> str:
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
