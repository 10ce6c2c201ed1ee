"""Frozen dataclasses as JSON and back, by their type hints: strict when reading, no pickle, no code."""

from __future__ import annotations

import collections.abc
import contextlib
import math
import types
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import onnx_ir as ir

from .errors import ArtifactError
from .program import dtype_name

T = TypeVar("T")


def to_json(value: object) -> Any:
    """``value`` as what ``json.dumps`` takes; NaN and infinities become strings, dtypes their names.

    >>> to_json((1.5, float("nan"), ir.DataType.FLOAT))
    [1.5, 'nan', 'float32']
    """
    if isinstance(value, ir.DataType):
        return dtype_name(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (Path, Enum)):
        return str(value)
    return value


def from_json(kind: type[T], data: object, place: str) -> T:
    """The dataclass ``kind`` that ``data`` describes; ``place`` begins every message.

    Raises: ArtifactError for a missing or unknown field, or a value of another type.

    >>> from miaotui.compiler.program import DimRange
    >>> from_json(DimRange, {"minimum": 1, "maximum": 8}, "manifest.json")
    DimRange(minimum=1, maximum=8)
    """
    return cast(T, _read(kind, data, place))


def _read(kind: Any, data: object, place: str) -> object:
    if kind is Any or kind is object:
        return data
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, place)
    if origin is Literal:
        return data if data in arguments else _refuse(data, " or ".join(map(repr, arguments)), place)
    if origin is tuple:
        items = data if isinstance(data, list) else _refuse(data, "a list", place)
        return tuple(_read(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(items))
    if origin is list:
        items = data if isinstance(data, list) else _refuse(data, "a list", place)
        return [_read(arguments[0], item, f"{place}[{index}]") for index, item in enumerate(items)]
    if origin in (dict, collections.abc.Mapping):
        table = data if isinstance(data, dict) else _refuse(data, "an object", place)
        return {key: _read(arguments[1], item, f"{place}.{key}") for key, item in table.items()}
    if kind is ir.DataType:
        return (
            _DTYPES.get(data)
            if isinstance(data, str) and data in _DTYPES
            else _refuse(data, "a dtype", place)
        )
    if is_dataclass(kind):
        return _read_record(cast("type[object]", kind), data, place)
    return _read_scalar(kind, data, place)


def _read_record(kind: type[object], data: object, place: str) -> object:
    table = data if isinstance(data, dict) else _refuse(data, f"an object ({kind.__name__})", place)
    known = {f.name: f for f in fields(cast(Any, kind))}
    optional = {
        name for name, f in known.items() if f.default is not MISSING or f.default_factory is not MISSING
    }
    if missing := known.keys() - table.keys() - optional:
        raise ArtifactError(place, f"has no {', '.join(sorted(missing))}")
    if unknown := table.keys() - known.keys():
        raise ArtifactError(place, f"has unknown {', '.join(sorted(unknown))}")
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], item, f"{place}: {name}") for name, item in table.items()})


def _read_union(kinds: tuple[Any, ...], data: object, place: str) -> object:
    if data is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return _read(kind, data, place)
            except ArtifactError as error:
                errors.append(error)
    raise errors[0]


def _read_scalar(kind: type[object], data: object, place: str) -> object:
    if kind is type(None):
        return None if data is None else _refuse(data, "null", place)
    if (
        kind is float
        and (isinstance(data, int) or data in ("nan", "inf", "-inf"))
        and not isinstance(data, bool)
    ):
        with contextlib.suppress(OverflowError):
            return float(cast("str", data))
    if type(data) is not kind:  # bool is an int to isinstance
        _refuse(data, kind.__name__, place)
    return data


def _refuse(data: object, expected: str, place: str) -> Any:
    shown = repr(data)
    raise ArtifactError(place, f"expected {expected}, got {shown if len(shown) < 60 else shown[:57] + '...'}")


_DTYPES = {dtype_name(dtype): dtype for dtype in ir.DataType}
