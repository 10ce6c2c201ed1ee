"""Counters: joules, memory, clocks and throttling of a stretch of runs; what is not there says why."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from miaotui.cli.bench import used
from miaotui.compiler.options import Target
from miaotui.runtime.counters import Glance, Nvml, Rapl, Without, counters_of
from miaotui.runtime.metering import Meter, Usage, metered


class Library:
    """The functions of ``pynvml`` that are used, of a device that takes 300 mJ a look."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self, refuses: str = "", reasons: int = 0x1 | 0x4 | 0x40) -> None:
        self.refuses, self.reasons = refuses, reasons
        self.millijoules, self.memory, self.clock = 7_000_000, 1 << 30, 1980
        self.found: list[object] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:
        self.found.append(index)
        return self

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> object:
        self.found.append(uuid)
        return self

    def nvmlDeviceGetName(self, handle: object) -> bytes:
        return b"H200"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:
        if self.refuses == "energy":
            raise self.NVMLError("Not Supported")
        self.millijoules += 300
        return self.millijoules

    def nvmlDeviceGetMemoryInfo(self, handle: object) -> Any:
        self.memory += 1 << 20
        return SimpleNamespace(used=self.memory)

    def nvmlDeviceGetClockInfo(self, handle: object, which: int) -> int:
        self.clock -= 5
        return self.clock if which == self.NVML_CLOCK_SM else 3201

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: object) -> int:
        return self.reasons


def test_nvml_counts_joules_of_the_runs_alone() -> None:
    library = Library()
    device = Nvml(library)
    library.millijoules = 10_000_000
    meter = Meter(device, period=10)
    for _ in range(3):
        with meter:
            pass
    found = meter.usage(runs=6, shortest=0)
    assert found.source == "NVML: H200" and not found.why
    assert found.joules == pytest.approx(3 * 0.3) and found.per_run == pytest.approx(0.15)
    assert found.watts == pytest.approx(found.joules / found.seconds)
    assert found.memory_peak == library.memory and found.memory_clock == 3201
    # two looks at every entry, the clock falls by 5 MHz at each question: 10 a look
    assert found.clocks == (1965 - 50, 1965)


def test_idleness_is_no_throttling() -> None:
    assert Nvml(Library()).glance().throttling == {"power cap", "temperature (hardware)"}
    assert Nvml(Library(reasons=0x1 | 0x2)).glance().throttling == frozenset()


def test_a_device_is_found_by_number_or_uuid() -> None:
    library = Library()
    Nvml(library, "3")
    Nvml(library, "GPU-8f4e")
    assert library.found == [3, "GPU-8f4e"]


def test_what_a_device_does_not_tell_has_a_reason_and_the_rest_is_there() -> None:
    found = metered(lambda: None, Nvml(Library("energy")), seconds=0.01)
    assert found.joules is None and found.per_run is None
    assert found.why == {"joules": "NVML: Not Supported", "per_run": "NVML: Not Supported"}
    assert found.runs > 0 and found.throttling == ("power cap", "temperature (hardware)")


def test_short_stretches_tell_no_energy() -> None:
    meter = Meter(Nvml(Library()))
    with meter:
        pass
    found = meter.usage(1)
    assert found.joules is None and "too short" in found.why["joules"] and found.memory_peak is not None


def test_nothing_runs_where_nothing_counts() -> None:
    def fail() -> None:
        raise AssertionError

    found = metered(fail, Without("no driver"))
    assert set(found.why.values()) == {"no driver"} and found.runs == 0
    assert (found.joules, found.memory_peak, found.clocks, found.throttling) == (None,) * 4


@pytest.fixture
def zone(tmp_path: Path) -> Callable[..., None]:
    def write(name: str, energy: int, most: int = 1_000_000) -> None:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "energy_uj").write_text(f"{energy}\n")
        (folder / "max_energy_range_uj").write_text(f"{most}\n")

    return write


def test_rapl_adds_packages_and_carries_a_counter_on(zone: Callable[..., None], tmp_path: Path) -> None:
    zone("intel-rapl:0", 900_000)
    zone("intel-rapl:1", 100_000)
    zone("intel-rapl:0:0", 5)  # a part of package 0
    rapl = Rapl(tmp_path)
    before = rapl.energy()
    assert before == pytest.approx(1.0)
    zone("intel-rapl:0", 100_000)
    assert rapl.energy() == pytest.approx(before + 0.2)
    assert rapl.glance() == Glance() and "joules" not in rapl.lacks


def test_rapl_says_why_it_does_not_count(tmp_path: Path) -> None:
    rapl = Rapl(tmp_path)
    assert rapl.energy() is None and "no intel-rapl zone" in rapl.lacks["joules"]
    (tmp_path / "intel-rapl:0").mkdir()
    assert "can't be read" in Rapl(tmp_path).lacks["joules"]


def test_without_a_driver_cuda_has_reasons() -> None:
    library = pytest.importorskip("pynvml")
    try:
        library.nvmlInit()
    except library.NVMLError:
        found = counters_of(Target("cuda"))
        assert found.energy() is None and found.lacks["joules"].startswith("NVML: ")
    else:
        assert counters_of(Target("cuda")).name.startswith("NVML: ")


def test_without_the_package_the_reason_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert counters_of(Target("cuda")).lacks["joules"].endswith("pip install 'miaotui[cuda]'")


def test_the_table_has_a_line_a_candidate_and_each_reason_once() -> None:
    whole = Usage("NVML", 2.0, 10, 8.0, 3 << 20, (1200, 1980), 3201, ("power cap",), 0.8)
    rows = used([("cuda-ort", whole), ("source", None)], "run")
    assert rows == [
        ("device, cuda-ort", "0.8 J per run, 4 W; 3.1 MB of the device in use; clock 1200..1980 MHz; "
         "slowed down by power cap")
    ]  # fmt: skip
    nothing = metered(lambda: None, Without("no driver"))
    assert used([("a", nothing), ("b", nothing)], "run") == [("not counted", "no driver")]
