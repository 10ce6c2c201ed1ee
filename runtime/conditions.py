"""The conditions of a measurement: machine, threads, device, versions."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..compiler.options import Target

PACKAGES = (
    "miaotui",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
    "onnx",
    "onnx-ir",
    "torch",
    "keras",
    "transformers",
    "apache-tvm",
    "apache-tvm-ffi",
)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Where and how something was timed. ``load``: one-minute load average before; ``cores``: usable ones."""

    target: str
    threads: int
    cpu: str
    cores: int
    governor: str
    memory_bytes: int
    load: float
    system: str
    gpu: str
    versions: dict[str, str]


def conditions(target: Target, threads: int | None = None) -> Conditions:
    """The present conditions; fields the system does not tell are empty."""
    return Conditions(
        target=str(target),
        threads=cores() if threads is None else threads,
        cpu=_cpu(),
        cores=cores(),
        governor=_read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load=os.getloadavg()[0],
        system=platform.platform(terse=True),
        gpu=_gpu() if target.device == "cuda" else "",
        versions=versions(),
    )


def cores() -> int:
    """Physical cores this process may use: a second thread on a core only takes from the first.

    Source: ONNX Runtime's own default, which does not heed affinity.
    """
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    topology = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    usable = os.sched_getaffinity(0)
    return len({_read(topology.format(cpu)) or str(cpu) for cpu in usable})


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of those ``packages`` that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def peak_rss() -> int:
    """Greatest resident memory of this program so far, bytes.

    Where Linux tells only what getrusage knows, it is at least that of the process which started this one.
    """
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None if the system does not tell."""
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cpu() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    command = [tool, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
