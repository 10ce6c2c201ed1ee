"""Is this machine ready? Versions, and every ONNX Runtime provider proved by running a model on it."""

from __future__ import annotations

import ctypes
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]

BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
"""Packages that all install the module ``onnxruntime``, over each other's files."""

TARGETS = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda"}
GPU_LINE = "pip install 'onnxruntime-gpu[cuda,cudnn]'"

_OPTIONAL = {"torch": "PyTorch models", "keras": "Keras models", "transformers": "Hugging Face folders"}
_EXTRAS = {"torch": "torch", "keras": "keras", "transformers": "huggingface"}

_MODEL = (
    "08083a390a0e0a01780a01781201792203416464120570726f62655a0f0a0178120a0a08080112040a020801"
    "620f0a0179120a0a08080112040a02080142040a00100d"
)
"""An ONNX model as hex, so that the check needs no onnx: y = x + x over float32[1], opset 13."""

_PROBE = """
import json, sys
import numpy, onnxruntime
provider = sys.argv[1]
if provider == "CUDAExecutionProvider" and hasattr(onnxruntime, "preload_dlls"):
    onnxruntime.preload_dlls()
model = bytes.fromhex(sys.argv[2])
session = onnxruntime.InferenceSession(model, providers=[provider])
result = session.run(None, {"x": numpy.float32([3])})[0]
print(json.dumps({"providers": session.get_providers(), "right": result.tolist() == [6.0]}))
"""
_LIST = "import json, onnxruntime; print(json.dumps(onnxruntime.get_available_providers()))"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked. ``fix``: the exact command or step; empty if nothing is to be done."""

    check: str
    status: Status
    fact: str
    fix: str = ""


def diagnose() -> list[Finding]:
    """Every check, in order; loads no framework, and tries each provider in a process of its own."""
    return [*_python(), *_core(), *_builds(), *_driver(), *_providers(), *_native(), *_tvm(), *_optional()]


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")


def _core() -> Iterator[Finding]:
    """What miaotui's own metadata requires without an extra."""
    for requirement in _requires("miaotui"):
        match = re.match(r"([\w.-]+)\s*(?:>=\s*([\w.]+))?", requirement)
        if match is None or ";" in requirement:
            continue
        name, least = match[1], match[2] or "0"
        version = _version(name)
        if version is None:
            yield Finding(name, "fail", "is not installed", f"pip install '{requirement}'")
        elif _numbers(version) < _numbers(least):
            yield Finding(name, "fail", f"{version} is older than {least}", f"pip install -U '{requirement}'")
        else:
            yield Finding(name, "ok", version)


def _builds() -> Iterator[Finding]:
    found = {name: version for name in BUILDS if (version := _version(name)) is not None}
    if len(found) > 1:
        both = " and ".join(f"{name} {version}" for name, version in found.items())
        wanted = GPU_LINE if "onnxruntime-gpu" in found else "pip install onnxruntime"
        fact = f"{both} are both installed and overwrite each other's files"
        yield Finding("onnxruntime", "fail", fact, f"pip uninstall -y {' '.join(found)} && {wanted}")
    elif not found:
        fix = "pip install 'miaotui[cpu]', or pip install 'miaotui[cuda]' for NVIDIA GPUs"
        yield Finding("onnxruntime", "fail", "is not installed", fix)
    for name, version in found.items():
        yield Finding(name, "ok", version)


def _driver() -> Iterator[Finding]:
    supported = _cuda_of_driver()
    if supported is None:
        yield Finding("nvidia driver", "ok", "none: compiling for cuda works, running it needs a GPU")
        return
    gpus = _output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    fact = f"CUDA {supported[0]}.{supported[1]}" + "".join(f"; {line.strip()}" for line in gpus.splitlines())
    wanted = next(
        (_numbers(r) for r in _requires("onnxruntime-gpu") if r.startswith("nvidia-cuda-runtime")), ()
    )
    if wanted and supported < wanted[:2]:
        needs = f"{fact}, but the installed onnxruntime-gpu is built for CUDA {wanted[0]}"
        yield Finding("nvidia driver", "fail", needs, "update the NVIDIA driver")
    else:
        yield Finding("nvidia driver", "ok", fact)


def _providers() -> Iterator[Finding]:
    if all(_version(name) is None for name in BUILDS):
        return
    listed = _python_json(_LIST)
    if not isinstance(listed, list):
        fix = "pip install --force-reinstall onnxruntime"
        yield Finding("onnxruntime", "fail", f"does not import: {listed}", fix)
        return
    for provider in listed:
        yield _tried(provider)


def _tried(provider: str) -> Finding:
    """Whether ``provider`` really runs a model, not just says that it would."""
    result = _python_json(_PROBE, provider, _MODEL)
    if isinstance(result, dict) and provider in result["providers"] and result["right"]:
        return Finding(provider, "ok", "ran a model")
    fact = result if isinstance(result, str) else "opened a session on another provider instead"
    missing = re.search(r"(lib[\w+.-]+?\.so[.\d]*): cannot open", fact)
    if missing is not None:
        fact = f"{missing[1]} is missing"
    status: Status = "fail" if provider in TARGETS and _cuda_of_driver() is not None else "warn"
    return Finding(
        provider, "fail" if provider == "CPUExecutionProvider" else status, fact, _fix(provider, fact)
    )


def _fix(provider: str, fact: str) -> str:
    if "libcuda.so" in fact or (provider == "CUDAExecutionProvider" and _cuda_of_driver() is None):
        return "install the NVIDIA driver, or run on a machine that has one; compiling for cuda works"
    if re.search(r"lib(cu|nv)(?!infer|onnxparser)", fact) or provider == "CUDAExecutionProvider":
        return GPU_LINE
    if provider == "CPUExecutionProvider":
        return "pip install --force-reinstall onnxruntime"
    return "miaotui does not use this provider"


def _native() -> Iterator[Finding]:
    """The C compiler, and what native code for this machine uses."""
    from ..compiler.codegen.isa import isa_of
    from ..compiler.codegen.native.toolchain import find_toolchain
    from ..compiler.errors import CompileError
    from ..compiler.options import Target

    try:
        isa = isa_of(Target("cpu"))
        yield Finding("native code", "ok", f"{isa.name}: {', '.join(isa.needs) or 'nothing special'}")
        yield Finding("c compiler", "ok", find_toolchain(isa).version())
    except CompileError as error:
        [problem] = error.problems
        yield Finding("c compiler", "warn", f"{problem.fact}: no native code", problem.fix)


def _tvm() -> Iterator[Finding]:
    """Whether there is a pair of TVM and its interface that work together."""
    from ..compiler.codegen.tvm.versions import FIX, check_pair
    from ..compiler.errors import ToolError

    if _version("apache-tvm") is None:
        yield Finding("tvm", "ok", "not installed, needed for --backend tvm only", FIX)
        return
    try:
        yield Finding("tvm", "ok", check_pair())
    except ToolError as error:
        [problem] = error.problems
        yield Finding("tvm", "warn", f"{problem.place} {problem.fact}", problem.fix)


def _optional() -> Iterator[Finding]:
    for name, purpose in _OPTIONAL.items():
        version = _version(name)
        if version is not None:
            yield Finding(name, "ok", version)
        else:
            yield Finding(
                name,
                "ok",
                f"not installed, needed for {purpose} only",
                f"pip install 'miaotui[{_EXTRAS[name]}]'",
            )


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requires(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", re.sub(r"^[A-Za-z][\w-]*", "", version))[:3])


def _cuda_of_driver() -> tuple[int, int] | None:
    """The CUDA version the installed NVIDIA driver supports, or None without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1" if sys.platform != "win32" else "nvcuda.dll")
        found = ctypes.c_int()
        if driver.cuDriverGetVersion(ctypes.byref(found)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return found.value // 1000, found.value % 1000 // 10


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _python_json(code: str, *arguments: str) -> Any:
    """The JSON that ``code`` prints in a fresh interpreter, or the last line of its complaint."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return "took longer than 120 s"
    if done.returncode == 0:
        result = json.loads(done.stdout.splitlines()[-1])
        wrong = isinstance(result, dict) and arguments and arguments[0] not in result.get("providers", [])
        return _complaint(done.stderr) if wrong and done.stderr.strip() else result
    return _complaint(done.stderr) or f"the process ended with code {done.returncode}"


def _complaint(stderr: str) -> str:
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).strip() for line in stderr.splitlines() if line.strip()]
    telling = next((line for line in lines if "cannot open shared object" in line), "")
    return (telling or next((line for line in reversed(lines) if line), ""))[:400]
