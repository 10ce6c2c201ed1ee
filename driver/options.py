"""CompileOptions from plain Python arguments: strings for targets, tuples or text for ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..compiler.errors import OptionError
from ..compiler.options import CompileOptions, Target, parse_bytes, parse_dim_range
from ..compiler.parallel.mesh import AXES, Mesh
from ..compiler.program import DimRange


def options_of(
    *,
    target: str | Target = "cpu",
    dims: Mapping[str, object] | None = None,
    enable: Sequence[str] = (),
    disable: Sequence[str] = (),
    mesh: Mesh | Mapping[str, int] | None = None,
    memory: int | str | None = None,
    **others: Any,
) -> CompileOptions:
    """The frozen options for ``compile``. Raises: OptionError for an unknown name or value.

    >>> options_of(target="cuda:sm_90", dims={"batch": (1, 8)}).dims
    (('batch', DimRange(minimum=1, maximum=8)),)
    >>> options_of(mesh={"dp": 2, "pp": 2}, memory="8GiB").mesh
    Mesh(dp=2, pp=2, tp=1)
    """
    known = {f.name for f in fields(CompileOptions)}
    unknown = sorted(set(others) - known)
    if unknown:
        raise OptionError("compile", f"no option {', '.join(unknown)}", f"it has {', '.join(sorted(known))}")
    return CompileOptions(
        target=Target.parse(target) if isinstance(target, str) else target,
        dims=tuple((name, _range(name, value)) for name, value in (dims or {}).items()),
        enable=tuple(enable),
        disable=tuple(disable),
        mesh=mesh if isinstance(mesh, Mesh) else _mesh(mesh or {}),
        memory=parse_bytes(memory) if isinstance(memory, str) else memory,
        **others,
    )


def _mesh(given: Mapping[str, int]) -> Mesh:
    wrong = [f"{axis}={size!r}" for axis, size in given.items() if axis not in AXES or type(size) is not int]
    if wrong:
        raise OptionError(
            "mesh", f"{', '.join(wrong)} is no part of one", 'write {"dp": 2, "pp": 2, "tp": 2}'
        )
    return Mesh(**given)


def _range(name: str, value: object) -> DimRange:
    match value:
        case DimRange():
            return value
        case int():
            return DimRange(value, value)
        case (int() as low, (int() | None) as high):
            return DimRange(low, high)
        case str():
            return parse_dim_range(f"{name}={value}")[1]
    raise OptionError("dims", f"{name}={value!r} is no range", f"write {{{name!r}: (1, 64)}}")
