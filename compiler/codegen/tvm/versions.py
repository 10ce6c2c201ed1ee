"""The TVM that is imported: only pairs of apache-tvm and apache-tvm-ffi that are known to work together."""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import metadata
from types import ModuleType

from ...errors import ToolError, require

PAIRS = {"0.27": ("0.1.14",)}
"""Releases of apache-tvm → releases of apache-tvm-ffi. Tuning crashes under 0.1.15.post2."""

FIX = "pip install 'miaotui[tvm]'"


@cache
def require_tvm() -> ModuleType:
    """The module ``tvm``. Raises: ToolError if it is missing, or half of a pair that is not known to work."""
    check_pair()
    require_ffi()
    return require("tvm", extra="tvm")


@cache
def require_ffi() -> ModuleType:
    """The module ``tvm_ffi``, by which libraries are loaded. Raises: ToolError if it is missing.

    It imports torch if that is installed, only to have it imported first: 3 seconds and 300 MB are saved.
    """
    without = "torch" not in sys.modules
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    if without:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        return require("tvm_ffi", extra="tvm")
    finally:
        if without:
            del sys.modules["torch"]


def check_pair() -> str:
    """Both versions in words. Raises: ToolError if one is missing or they are no known pair."""
    tvm, ffi = version_of("apache-tvm"), version_of("apache-tvm-ffi")
    if _release(tvm, 2) not in PAIRS:
        raise ToolError("apache-tvm", f"{tvm} is none of {', '.join(PAIRS)}", FIX)
    fitting = PAIRS[_release(tvm, 2)]
    if _release(ffi, 3) not in fitting:
        fact = f"{ffi} is not known to work with apache-tvm {tvm}, which takes {', '.join(fitting)}"
        raise ToolError("apache-tvm-ffi", fact, FIX)
    return f"{tvm} with apache-tvm-ffi {ffi}"


def version_of(package: str) -> str:
    """The installed version. Raises: ToolError if there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise ToolError(package, "is not installed", FIX) from None


def _release(version: str, parts: int) -> str:
    return ".".join(version.split(".")[:parts])
