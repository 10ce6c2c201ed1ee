"""Devices a plan is made for: the catalogue, and descriptions of the user's own, as TOML."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import OptionError, Problem

GIB = float(1 << 30)
CPU = "cpu-local"
"""An equal share of this machine, measured when it is asked for: 1xcpu-local is all its cores."""

SEE = "see h100.toml of the catalogue"


@dataclass(frozen=True, slots=True)
class Link:
    """A way between devices: bytes a second in each direction, seconds until the first arrives."""

    name: str
    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True)
class Accelerator:
    """A device. Bytes, bytes a second, operations a second; all as the data sheet says.

    ``reserve``: memory that the driver and the runtime take. ``rates`` by dtype, dense. Up to ``node``
    devices are joined by ``link``, more by ``network``. ``shared``: bytes a second that all devices of a node
    read together, where they share a memory. ``kernel``: seconds of a kernel however small it is, and with it
    rates that are reached as they stand; None where they are a data sheet's. ``price``: of an hour, in
    dollars, if the description gives one.
    """

    name: str
    title: str
    memory: float
    reserve: float
    bandwidth: float
    rates: Mapping[str, float]
    node: int
    link: Link
    network: Link
    shared: float | None = None
    kernel: float | None = None
    price: float | None = None

    def between(self, devices: int) -> Link:
        """What ``devices`` side by side are joined by."""
        return self.link if devices <= self.node else self.network


def catalogue(extra: Iterable[Path] = ()) -> dict[str, Path]:
    """Where each known device is described, by name; ``extra`` files take the place of our own.

    Raises: OptionError for a file that can't be read or names no device.
    """
    found = {Path(str(item)).stem: Path(str(item)) for item in (files(__package__) / "devices").iterdir()}
    return {**dict(sorted(found.items())), **{str(_read(path)["name"]): path for path in extra}}


def devices(text: str, extra: Iterable[Path] = ()) -> tuple[int, Accelerator]:
    """How many of which device: ``8xh100``, ``h200``.

    Raises: OptionError for text of another form, an unknown device (listing all), or devices of two kinds.

    >>> count, device = devices("8xh100")
    >>> count, device.title
    (8, 'NVIDIA H100 SXM 80 GB')
    """
    if "," in text or "+" in text:
        raise OptionError("--devices", f"{text!r} mixes devices", "plan for one kind at a time")
    match = re.fullmatch(r"(?:(\d{1,6})\s*[x×*]\s*)?([\w.\-]+)", text.strip())
    if match is None or int(match[1] or 1) < 1:
        raise OptionError("--devices", f"{text!r} does not parse", "write for example 8xh100")
    count, name = int(match[1] or 1), match[2].lower()
    known = catalogue(extra)
    if name == CPU:
        from .measure import local_cpu

        return count, local_cpu(count)
    if name not in known:
        fix = f"give one of {', '.join([CPU, *known])}, or a description with --device-file"
        raise OptionError("--devices", f"no device {match[2]!r}", fix)
    return count, accelerator(known[name])


def accelerator(path: Path) -> Accelerator:
    """The device that a TOML file describes. Raises: OptionError listing all that is wrong."""
    data = _read(path)
    read = _Reading(path.name)
    made = Accelerator(
        name=str(data["name"]),
        title=str(data.get("title", data["name"])),
        memory=read.number(data, "memory_gib") * GIB,
        reserve=read.number(data, "reserve_gib", 1.0) * GIB,
        bandwidth=read.number(data, "bandwidth_gb") * 1e9,
        rates=read.rates(data),
        node=int(read.number(data, "node", 1)),
        link=read.link(data, "link"),
        network=read.link(data, "network"),
        kernel=read.number(data, "kernel_us") * 1e-6 if "kernel_us" in data else None,
        price=read.number(data, "price_hour") if "price_hour" in data else None,
    )
    if read.wrong:
        raise OptionError.of(read.wrong)
    return made


class _Reading:
    """Typed reading of a description that gathers what is wrong with it."""

    def __init__(self, place: str) -> None:
        self.place = place
        self.wrong: list[Problem] = []

    def number(self, section: Mapping[str, Any], key: str, default: float | None = None) -> float:
        value = section.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            said = "is missing" if value is None else f"is {value!r}, not a positive number"
            self.wrong.append(Problem(f"{self.place}: '{key}'", said, SEE))
            return 1.0
        return float(value)

    def section(self, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        found = data.get(key)
        if not isinstance(found, Mapping):
            said = "is missing" if found is None else f"is {found!r}, not a table"
            self.wrong.append(Problem(f"{self.place}: [{key}]", said, SEE))
            return {"fp32": 1.0, "bandwidth_gb": 1.0}
        return found

    def rates(self, data: Mapping[str, Any]) -> dict[str, float]:
        section = self.section(data, "tflops")
        if "fp32" not in section:
            self.wrong.append(Problem(f"{self.place}: [tflops]", "has no fp32", SEE))
        return {dtype: self.number(section, dtype) * 1e12 for dtype in section}

    def link(self, data: Mapping[str, Any], key: str) -> Link:
        section = self.section(data, key)
        bandwidth = self.number(section, "bandwidth_gb") * 1e9
        return Link(str(section.get("name", key)), bandwidth, self.number(section, "latency_us", 10.0) * 1e-6)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise OptionError(str(path), "does not exist", "give --device-file a TOML file") from None
    except (OSError, ValueError) as error:
        raise OptionError(str(path), f"is no TOML: {error}", SEE) from None
    if not isinstance(data.get("name"), str):
        raise OptionError(str(path), "gives no name", 'write name = "mine" on top')
    return data
