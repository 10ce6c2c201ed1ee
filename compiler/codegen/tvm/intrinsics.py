"""TVM's tensor intrinsics: those of this CPU alone, while schedules are searched."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

PACKAGE = "tvm.s_tir.tensor_intrin"

OF_MACHINE = {"x86_64": "x86", "aarch64": "arm_cpu"}
"""Machine → module of the package."""


@contextmanager
def intrinsics(machine: str) -> Iterator[None]:
    """Stands in for the package, which meta-schedule imports, and registers the intrinsics of ``machine``.

    The package itself registers those of five kinds of GPU, which takes half a minute in each process. Its
    modules are found as ever by whoever names them, and behind this the package is imported as ever.
    """
    if PACKAGE in sys.modules:
        yield
        return
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    stand_in = ModuleType(PACKAGE)
    stand_in.__path__ = list(spec.submodule_search_locations or ())
    stand_in.__spec__ = spec
    sys.modules[PACKAGE] = stand_in
    try:
        if machine in OF_MACHINE:
            importlib.import_module(f"{PACKAGE}.{OF_MACHINE[machine]}")
        yield
    finally:
        sys.modules.pop(PACKAGE, None)
