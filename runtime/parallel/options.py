"""How a partitioned program is run: by which executor, how long to wait, how often to try again."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias, get_args

from ...compiler.errors import OptionError, Problem

ExecutorName: TypeAlias = Literal["threads", "processes", "ray"]
Collectives: TypeAlias = Literal["auto", "memory", "gloo", "nccl"]


@dataclass(frozen=True, slots=True)
class ParallelOptions:
    """Of an executor. Values may be given as text.

    ``timeout``: seconds that one attempt of a request may take; ``start_timeout``: workers to start.
    ``retries``: attempts after the first. ``micro_batches``: into how many a replica's rows are cut, 0 takes
    one for each stage.
    ``collectives``: what carries them between processes; auto takes shared memory on one machine, and on a
    cluster gloo, or NCCL where the target is CUDA. ``address``: of a Ray cluster, ``auto``, ``host:port`` or
    ``ray://host:port``, which takes ``ray[client]``; empty starts one on this machine. ``placement``: how Ray
    lays ranks on nodes.
    Raises: OptionError listing everything that does not fit.

    >>> ParallelOptions.parse("processes{timeout=5,retries=1}")
    ParallelOptions(executor='processes', timeout=5.0, retries=1)
    """

    executor: ExecutorName = "threads"
    timeout: float = 300.0
    start_timeout: float = 120.0
    retries: int = 2
    micro_batches: int = 0
    collectives: Collectives = "auto"
    address: str = ""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise OptionError.of(problems)

    def _problems(self) -> list[Problem]:
        found = []
        if self.executor not in get_args(ExecutorName):
            found.append(_unknown("executor", self.executor, get_args(ExecutorName)))
        if self.collectives not in get_args(Collectives):
            found.append(_unknown("collectives", self.collectives, get_args(Collectives)))
        if self.placement not in _PLACEMENTS:
            found.append(_unknown("placement", self.placement, _PLACEMENTS))
        for name, low in (("timeout", 0.001), ("start_timeout", 0.001), ("retries", 0), ("micro_batches", 0)):
            if getattr(self, name) < low:
                found.append(Problem(f"--executor: {name}", f"{getattr(self, name)} is less than {low:g}"))
        return found

    @classmethod
    def parse(cls, text: str) -> ParallelOptions:
        """``threads``, ``processes{timeout=5}``, ``ray{address=auto}``. Raises: OptionError."""
        match = re.fullmatch(r"(?P<name>\w+)(\{(?P<options>[^{}]*)\})?", text.strip())
        if match is None:
            raise OptionError("--executor", f"{text!r} does not parse", "write processes{timeout=5}")
        defaults = {field.name: field.default for field in fields(cls) if field.name != "executor"}
        given: dict[str, Any] = {"executor": match["name"]}
        problems = []
        for part in filter(None, (p.strip() for p in (match["options"] or "").split(","))):
            name, _, value = part.partition("=")
            if name not in defaults:
                problems.append(_unknown("option", name, tuple(defaults)))
                continue
            kind: type[str | int | float] = type(defaults[name])  # type: ignore[assignment]
            try:
                given[name] = kind(value)
            except ValueError:
                problems.append(Problem(f"--executor: {name}", f"{value!r} is no {kind.__name__}"))
        if problems:
            raise OptionError.of(problems)
        return cls(**given)

    def __repr__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default or f.name == "executor")
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in changed)})"


_PLACEMENTS = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


def _unknown(what: str, name: str, known: tuple[str, ...]) -> Problem:
    return Problem(f"--executor: {what}", f"{name!r} is not known", f"one of {', '.join(known)}")
