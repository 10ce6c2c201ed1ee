"""Schedules measured by TVM's meta-schedule, kernel by kernel, and kept by kernel for later compiles."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import require
from ...places import cache_folder
from ..isa import ISAS
from .intrinsics import intrinsics
from .search import Search, Verdict
from .stopwatch import Stopwatch
from .versions import version_of


@dataclass(frozen=True, slots=True)
class Tuned:
    """A kernel that was measured; seconds of a call. ``declined``: why it was not."""

    kernel: str
    untuned: float = 0.0
    tuned: float = 0.0
    kept: bool = False
    declined: str = ""


@dataclass(slots=True)
class Tuning:
    """Gives kernels the best schedules known, after at most ``trials`` measured for each.

    Kernels of our own and those whose sizes are known only when they run stay as they are; so do those that
    no schedule measured makes faster, and those that TVM can't search. What was measured before counts: an
    interrupted run goes on where it was. ``lanes``: floats in a vector. ``found``: what became of kernels.
    """

    trials: int
    isa: str
    lanes: int
    found: list[Tuned] = field(default_factory=list)

    def __call__(self, tvm: Any, module: Any, target: Any) -> Any:
        """The module with the schedules."""
        counted = tvm.target.Target({**_attributes(target), "num-cores": 1})
        functions = dict(module.functions_items())
        with ExitStack() as stack:
            watch = stack.enter_context(Stopwatch(_runtime(tvm)))
            stack.enter_context(intrinsics(ISAS[self.isa].machine))
            for name in sorted(functions, key=lambda g: str(g.name_hint)):
                function = functions[name]
                if isinstance(function, tvm.tirx.PrimFunc) and _is_tunable(tvm, function):
                    functions[name] = self._best(tvm, str(name.name_hint), function, counted, watch)
        return tvm.IRModule(functions, attrs=module.attrs)

    def _best(self, tvm: Any, name: str, function: Any, target: Any, watch: Stopwatch) -> Any:
        search = search_of(tvm, function, target, self.lanes, tuning_folder(self.isa))
        try:
            verdict = search.known(self.trials) or search.verdict(self.trials, watch)
        except Exception as error:  # TVM raises its own as a dozen types: this kernel stays as it is
            self.found.append(Tuned(name, declined=_line(error)))
            return function
        kept = verdict.kernel is not None
        self.found.append(Tuned(name, verdict.untuned, verdict.tuned, kept))
        return _replaced(tvm, function, verdict)

    def settings(self) -> list[dict[str, Any]]:
        """``found`` as JSON takes it."""
        return [asdict(each) for each in self.found]


def search_of(tvm: Any, function: Any, target: Any, lanes: int, folder: Path) -> Search:
    """The search for a kernel's schedule, in a folder of its own below ``folder``."""
    ffi = require("tvm_ffi", extra="tvm")
    module = tvm.IRModule({"main": function.with_attr({"global_symbol": "main", "tirx.noalias": True})})
    return Search(tvm, module, target, lanes, folder / f"{ffi.structural_hash(module) & (1 << 64) - 1:016x}")


def tuning_folder(isa: str) -> Path:
    """Where the measurements for an instruction set lie, those of one version of TVM."""
    return cache_folder() / "tvm" / version_of("apache-tvm") / isa


def _replaced(tvm: Any, function: Any, verdict: Verdict) -> Any:
    if verdict.kernel is None:
        return function
    made = tvm.ir.load_json(verdict.kernel).with_attr("tirx.is_scheduled", True)
    symbol = None if function.attrs is None else function.attrs.get("global_symbol")
    return made.without_attr("global_symbol") if symbol is None else made.with_attr("global_symbol", symbol)


def _is_tunable(tvm: Any, function: Any) -> bool:
    if function.attrs is not None and function.attrs.get("tirx.is_scheduled", False):
        return False
    if any(not hasattr(p.ty, "shape") for p in function.params):
        return False  # a size that is passed by itself
    sizes = [size for p in function.params for size in p.ty.shape]
    return all(isinstance(size, (int, tvm.tirx.IntImm)) for size in sizes)


def _attributes(target: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": str(target.kind.name)}
    for name in ("mcpu", "mattr", "mtriple"):
        if name in target.attrs:
            value = target.attrs[name]
            found[name] = value if isinstance(value, str) else [str(v) for v in value]
    return found


def _runtime(tvm: Any) -> str:
    return str(Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so")


def _line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
