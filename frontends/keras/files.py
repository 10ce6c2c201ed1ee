"""``.keras`` files: checked for what could run code or reach outside, then loaded with safe mode on."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...compiler.errors import ModelError, Problem
from .backend import require_keras

_RESAVE = "save it again with model.save('model.keras')"
_LAMBDA = "replace the Lambda by a layer class or keras.ops, or load the model yourself and pass it in Python"
_CUSTOM = "register it with @keras.saving.register_keras_serializable and pass the loaded model in Python"
_LITERALS = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__")


def read_keras(path: Path) -> Any:
    """The model in a ``.keras`` file, not compiled for training.

    Raises: ModelError for a damaged file, for Lambda layers (they hold code) and for custom objects that
    are not registered, all at once; ToolError if Keras is missing or on another backend.
    """
    keras = require_keras()
    _check(path, keras)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises errors of many kinds for a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
        raise ModelError(path.name, f"Keras can't load it: {reason}", _RESAVE) from error


def _check(path: Path, keras: Any) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            problems = list(_archive_problems(archive, path))
            if problems:
                raise ModelError.of(problems)
            config = json.loads(archive.read("config.json"))
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        with path.open("rb") as file:
            start = file.read(4)
        if start == b"\x89HDF":
            raise ModelError(path.name, "is a HDF5 file, not a .keras archive", _RESAVE) from None
        fact = (
            "is empty"
            if not start
            else "is truncated or damaged"
            if start[:2] == b"PK"
            else "is no .keras archive"
        )
        raise ModelError(path.name, f"{fact} ({error})", _RESAVE) from None
    except (ValueError, RecursionError) as error:
        raise ModelError(path.name, f"config.json does not parse ({error})", _RESAVE) from None
    problems = list(dict.fromkeys(_config_problems(config, path.name, keras)))
    if problems:
        raise ModelError.of(problems)


def _archive_problems(archive: zipfile.ZipFile, path: Path) -> Iterator[Problem]:
    entries = {info.filename: info for info in archive.infolist()}
    for name in ("config.json", "model.weights.h5"):
        if name not in entries:
            yield Problem(path.name, f"holds no {name}", _RESAVE)
    for name in entries:
        parts = Path(name).parts
        if name.startswith(("/", "\\")) or ".." in parts or "\\" in name or ":" in name:
            yield Problem(path.name, f"entry {name!r} would lie outside the archive", _RESAVE)
    declared, stored = sum(i.file_size for i in entries.values()), path.stat().st_size
    if declared > 100 * stored + (1 << 20):
        yield Problem(path.name, f"unpacks {stored} bytes to {declared}", _RESAVE)
        return
    damaged = archive.testzip()
    if damaged is not None:
        yield Problem(path.name, f"entry {damaged!r} is damaged", _RESAVE)


def _config_problems(config: Any, place: str, keras: Any) -> Iterator[Problem]:
    """Lambda layers, unregistered custom objects, and references to modules that are not Keras's."""
    known = keras.saving.get_custom_objects()
    pending: list[tuple[str, Any]] = [("model", config)]
    while pending:
        where, item = pending.pop()
        if isinstance(item, list):
            pending.extend((where, part) for part in reversed(item))
        elif isinstance(item, dict):
            kind, inner = item.get("class_name"), item.get("config")
            if isinstance(kind, str) and kind not in _LITERALS:
                name = inner.get("name") if isinstance(inner, dict) else None
                where = f"layer {name!r}" if isinstance(name, str) else where
                yield from _object_problems(item, f"{place}: {where}", known)
            pending.extend((where, part) for part in reversed(list(item.values())))


def _object_problems(item: dict[str, Any], where: str, known: Any) -> Iterator[Problem]:
    kind, module = str(item["class_name"]), item.get("module")
    registered = item.get("registered_name")
    if kind in ("Lambda", "__lambda__") and (module is None or str(module).startswith(("keras", "builtins"))):
        yield Problem(where, "holds a Python function (Lambda), which would be run", _LAMBDA)
    elif module is not None and str(module).split(".")[0] == "keras":
        return
    elif module == "builtins" and kind == "function":
        name = str(item.get("config"))
        if registered not in known and name not in known:
            yield Problem(where, f"custom function {name!r} is not registered", _CUSTOM)
    elif (registered or module) and registered not in known and kind not in known:
        shown = registered if registered not in (None, "function") else f"{module}.{kind}"
        yield Problem(where, f"custom object {shown!r} is not registered", _CUSTOM)
