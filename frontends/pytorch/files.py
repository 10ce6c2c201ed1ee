"""Torch files: ``.pt2`` archives are checked before torch reads them; pickles and TorchScript are refused."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...compiler.errors import ModelError, Problem, require
from .capture import quiet

_SAVE = (
    "save it with torch.export.save(torch.export.export(module, inputs), 'model.pt2'), "
    "or pass the module in Python"
)
_TARGET = re.compile(r"(torch\.ops\.|_operator\.|math\.|torch\.sym_|torch\._sym_)\w[\w.]*|")
_EXPRESSION = re.compile(r"(?!.*(__|import|eval|exec|open|attr|lambda))[\w\s+\-*/(),.<>=!&|~%]*", re.DOTALL)


def read_pt2(path: Path) -> Any:
    """The exported program of a ``.pt2`` file.

    torch's reader unpickles some parts and evaluates others: an archive that holds pickled weights or
    constants, compiled code, or operators and size expressions of unknown form is refused beforehand.
    Raises: ModelError for a file that is damaged, refused or of another kind.
    """
    torch = require("torch", extra="torch")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise ModelError(path.name, f"entry {damaged!r} is damaged", "copy or save the file again")
            _check(archive, path, torch)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise _not_an_archive(path, error) from None
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # torch raises errors of many kinds for a damaged program
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        fix = "save it again with the installed torch"
        raise ModelError(path.name, f"torch.export.load fails: {reason}", fix) from error


def refuse_pickle(path: Path) -> ModelError:
    """Why a ``.pt``, ``.pth`` or ``.bin`` file is not read."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return ModelError(path.name, "is a pickle, which can run code when read", _SAVE)
    if any("/code/" in name for name in names):
        return refuse_script(path.name)
    return ModelError(path.name, "is a pickled module or checkpoint, which can run code when read", _SAVE)


def refuse_script(place: str = "model") -> ModelError:
    """Why TorchScript, a file or a module, is not taken."""
    return ModelError(place, "is TorchScript, which torch no longer develops", _SAVE)


def is_pt2(path: Path) -> bool:
    """Whether the file is an archive in torch.export's format."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("archive_format") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _not_an_archive(path: Path, error: Exception) -> ModelError:
    if path.stat().st_size == 0:
        return ModelError(path.name, "is empty", "save it again with torch.export.save")
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        return refuse_pickle(path)
    fact = "is truncated or damaged" if start == b"PK" else "is no .pt2 archive"
    return ModelError(path.name, f"{fact} ({error})", "save it again with torch.export.save")


def _check(archive: zipfile.ZipFile, path: Path, torch: Any) -> None:
    names = archive.namelist()
    if not any(name.endswith("archive_format") for name in names):
        raise refuse_pickle(path)
    declared, stored = sum(i.file_size for i in archive.infolist()), path.stat().st_size
    problems = []
    if declared > 20 * stored + (1 << 20):
        problems.append(Problem(path.name, f"unpacks {stored} bytes to {declared}", _SAVE))
    for name in names:
        if "/aotinductor/" in name:
            problems.append(Problem(path.name, f"holds compiled code ({name})", _SAVE))
        elif name.endswith("_config.json"):
            for key, entry in json.loads(archive.read(name)).get("config", {}).items():
                if entry.get("use_pickle") or not str(entry.get("path_name")).startswith(
                    ("weight_", "tensor_")
                ):
                    problems.append(
                        Problem(path.name, f"{key!r} is stored as a pickle, which can run code", _SAVE)
                    )
        elif "/sample_inputs/" in name and not _is_plain(archive.read(name), torch):
            problems.append(Problem(path.name, f"{name} is a pickle that can run code", _SAVE))
        elif "/models/" in name and name.endswith(".json"):
            problems += [
                Problem(path.name, fact, _SAVE) for fact in _suspicious(json.loads(archive.read(name)))
            ]
    if problems:
        raise ModelError.of(problems)


def _is_plain(data: bytes, torch: Any) -> bool:
    """Whether torch reads ``data`` without running any code of it."""
    if not data:
        return True
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return False
    return True


def _suspicious(tree: Any) -> Iterator[str]:
    """Operator names and size expressions that torch would resolve by attribute or evaluate as Python."""
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            target, expression = item.get("target"), item.get("expr_str")
            if "inputs" in item and isinstance(target, str) and not _TARGET.fullmatch(target):
                yield f"operator {target!r} is none of torch's"
            if isinstance(expression, str) and not _EXPRESSION.fullmatch(expression):
                yield f"size {expression[:60]!r} is no arithmetic expression"
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
