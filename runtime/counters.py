"""Counters of a device: joules, memory, clocks, what slows it down; through NVML, and RAPL for CPUs."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..compiler.options import Target

_POWERCAP = Path("/sys/class/powercap")

_THROTTLING = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that slow a device down; the others are idleness and settings."""


@dataclass(frozen=True, slots=True)
class Glance:
    """One look at a device: bytes in use by all processes, clocks in MHz, what slows it down now."""

    memory: int | None = None
    clock: int | None = None
    memory_clock: int | None = None
    throttling: frozenset[str] = frozenset()


class Counters(Protocol):
    """A device that counts."""

    name: str

    @property
    def lacks(self) -> Mapping[str, str]:
        """For each field of Usage that it can't tell, the reason."""
        ...

    def energy(self) -> float | None:
        """Joules since some time in the past."""
        ...

    def glance(self) -> Glance:
        """Memory, clocks and throttling now."""
        ...


class Nvml:
    """An NVIDIA device through NVML. ``library``: the module ``pynvml`` or what has its functions.

    ``device``: an index or a UUID as CUDA_VISIBLE_DEVICES has them. Raises: what ``library`` raises without
    a driver or such a device.
    """

    def __init__(self, library: Any, device: str = "0") -> None:
        self._library = library
        library.nvmlInit()
        by_number = device.isdigit()
        find = library.nvmlDeviceGetHandleByIndex if by_number else library.nvmlDeviceGetHandleByUUID
        self._handle = find(int(device) if by_number else device)
        self.name = f"NVML: {_text(library.nvmlDeviceGetName(self._handle))}"
        self.lacks: dict[str, str] = {}
        self.energy()
        self.glance()

    def energy(self) -> float | None:
        """Joules since the driver was loaded."""
        found = self._asked("joules", self._library.nvmlDeviceGetTotalEnergyConsumption)
        return None if found is None else found / 1e3

    def glance(self) -> Glance:
        """Memory, clocks and throttling now."""
        library = self._library
        memory = self._asked("memory_peak", library.nvmlDeviceGetMemoryInfo)
        reasons = getattr(library, "nvmlDeviceGetCurrentClocksEventReasons", None)
        bits = self._asked("throttling", reasons or library.nvmlDeviceGetCurrentClocksThrottleReasons)
        return Glance(
            None if memory is None else int(memory.used),
            self._asked("clocks", library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_SM),
            self._asked("memory_clock", library.nvmlDeviceGetClockInfo, library.NVML_CLOCK_MEM),
            frozenset(name for bit, name in _THROTTLING.items() if bits is not None and bits & bit),
        )

    def _asked(self, field_name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML answers; None, and the reason in ``lacks``, where this device does not tell."""
        try:
            return function(self._handle, *arguments)
        except self._library.NVMLError as error:
            self.lacks[field_name] = f"NVML: {error}"
            return None


class Rapl:
    """The processors' packages through Linux' powercap: energy alone. ``root``: where its zones lie."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        zones = sorted(root.glob("intel-rapl:?")) + sorted(root.glob("intel-rapl:??"))
        self._files = [zone / "energy_uj" for zone in zones]
        self._limits = [_number(zone / "max_energy_range_uj") for zone in zones]
        self._last = [_number(file) for file in self._files]
        self._wrapped = [0] * len(zones)
        self.name = "RAPL"
        others = ("memory_peak", "clocks", "memory_clock", "throttling")
        self.lacks: dict[str, str] = dict.fromkeys(others, "RAPL counts energy alone")
        if not zones:
            self.lacks["joules"] = f"{root} has no intel-rapl zone: the kernel or the machine does not count"
        elif None in self._last:
            self.lacks["joules"] = f"{self._files[0]} can't be read: the kernel shows it to root alone"

    def energy(self) -> float | None:
        """Joules of all packages; a counter that began anew is carried on."""
        if "joules" in self.lacks:
            return None
        total = 0
        for index, file in enumerate(self._files):
            now, last = _number(file), self._last[index]
            if now is None or last is None:
                return None
            if now < last:
                self._wrapped[index] += self._limits[index] or 0
            self._last[index] = now
            total += now + self._wrapped[index]
        return total / 1e6

    def glance(self) -> Glance:
        """Nothing."""
        return Glance()


class Without:
    """In place of counters that are not there: every field has the same reason."""

    def __init__(self, reason: str) -> None:
        self.name = "none"
        fields = ("joules", "memory_peak", "clocks", "memory_clock", "throttling")
        self.lacks: dict[str, str] = dict.fromkeys(fields, reason)

    def energy(self) -> float | None:
        """Nothing."""
        return None

    def glance(self) -> Glance:
        """Nothing."""
        return Glance()


def counters_of(target: Target) -> Counters:
    """The counters of the device that ``target`` runs on here; never fails: what is missing says why."""
    if target.device != "cuda":
        return Rapl()
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        return Without("pynvml is not installed: pip install 'miaotui[cuda]'")
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() or "0"
    try:
        return Nvml(library, device)
    except library.NVMLError as error:
        return Without(f"NVML: {error}")


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
