"""From a Relax module to a library, pass by pass; a pass that fails leaves what it failed on behind."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from ...errors import CompileError
from .pipeline import FINISH, FLATTEN, FUSE, relax_passes
from .schedule import scheduled
from .threads import threads_bound

SECONDS = 20.0
"""Spent on making the reproducer of a failing pass smaller."""

Step: TypeAlias = Callable[[Any], Any]


class PassError(CompileError):
    """A pass of TVM's that failed; the message names the file that shows it."""

    exit_code = 70


def compiled(
    tvm: Any,
    module: Any,
    target: Any,
    lanes: int = 0,
    tuning: Callable[[Any, Any, Any], Any] | None = None,
) -> Any:
    """An executable of TVM's virtual machine. ``lanes``: floats in a vector of the CPU, 0 on another device.

    ``tuning``: what kernels go through first, ``(tvm, module, target)``.

    Raises: PassError naming the pass and its reproducer.
    """
    from tvm import relax

    with target:
        for step in relax_passes(FUSE):
            module = applied(tvm, str(step.info.name), step, module)
        if tuning is not None:
            module = applied(tvm, "tuning", lambda m: tuning(tvm, m, target), module)
        if not lanes:
            module = applied(tvm, "dlight", threads_bound(), module)
        else:
            module = applied(tvm, "schedule", lambda m: scheduled(tvm, m, lanes), module)
        for step in relax_passes((*FLATTEN, *FINISH)):
            module = applied(tvm, str(step.info.name), step, module)
    return applied(tvm, "build", lambda m: relax.build(m, target, relax_pipeline=None), module)


def applied(tvm: Any, name: str, step: Step, module: Any) -> Any:
    """What a step makes of the module. Raises: PassError."""
    try:
        return step(module)
    except Exception as error:  # TVM raises its own as a dozen types
        said = _said(error)
        small = reduced(tvm, module, lambda m: _complaint(step, m) == said)
        path = reproducer(tvm, name, small)
        fact = f"TVM's {name} failed: {said[:300]}"
        raise PassError("tvm", fact, f"{path} shows it; use another --backend") from error


def reduced(tvm: Any, module: Any, fails: Callable[[Any], bool]) -> Any:
    """The module without the functions that the failure does not need, as far as time allows."""
    kept = {item[0]: item[1] for item in module.functions_items()}
    end, size = time.monotonic() + SECONDS, max(1, len(kept) // 2)
    while size and time.monotonic() < end:
        names = sorted(kept, key=lambda g: str(g.name_hint))
        for start in range(0, len(names), size):
            gone = set(map(str, (g.name_hint for g in names[start : start + size])))
            rest = {g: f for g, f in kept.items() if str(g.name_hint) not in gone}
            if rest and time.monotonic() < end and fails(tvm.IRModule(rest)):
                kept = rest
        size = size // 2
    return tvm.IRModule(kept)


def reproducer(tvm: Any, name: str, module: Any) -> Path:
    """A Python file that loads the module; its script is there to be read."""
    text = "\n".join(f"# {line}" for line in module.script().splitlines())
    data = tvm.ir.save_json(module)
    code = f'import tvm\n\n{text}\nmodule = tvm.ir.load_json(r"""{data}""")\n# {name} fails on it\n'
    folder = Path(tempfile.mkdtemp(prefix="miaotui-tvm-"))
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    return path


def _complaint(step: Step, module: Any) -> str | None:
    try:
        step(module)
    except Exception as error:  # compared with what the whole module raised
        return _said(error)
    return None


def _said(error: Exception) -> str:
    """The last line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
