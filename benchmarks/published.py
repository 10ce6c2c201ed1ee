"""Published measurements of serving as rows that the planner's cost model can predict."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.planner.catalogue import Accelerator, accelerator, catalogue
from miaotui.compiler.planner.config import network_of
from miaotui.compiler.planner.constants import PLAIN, Constants
from miaotui.compiler.planner.load import Load
from miaotui.compiler.planner.network import Network
from miaotui.compiler.planner.steady import Steady, steady
from miaotui.compiler.planner.step import Cost

FILE = Path(__file__).with_suffix(".toml")


@dataclass(frozen=True)
class Row:
    """One figure: ``value`` tokens a second, or milliseconds between tokens if ``milliseconds``.

    ``fitted``: whether the constants may be fitted to it.
    """

    stack: str
    model: str
    device: str
    precision: str
    cache: str
    mesh: Mesh
    load: Load
    value: float
    milliseconds: bool = False
    fitted: bool = True

    def state(self, constants: Constants) -> Steady:
        """The steady state that the cost model predicts."""
        network, device = networks()[self.model], known(self.device)
        stack = constants.stacks.get(self.stack, constants.stacks[PLAIN])
        cost = Cost(network, device, self.mesh, self.precision, self.cache, constants, stack)
        return steady(cost, self.load)

    def predicted(self, constants: Constants) -> float:
        """The figure that the cost model predicts."""
        state = self.state(constants)
        return state.cycle * 1e3 if self.milliseconds else state.rate


def rows() -> list[Row]:
    """All rows, those of single figures first."""
    return [*_single(), *_tabled()]


@cache
def _data() -> dict[str, Any]:
    return tomllib.loads(FILE.read_text("utf-8"))


@cache
def networks() -> dict[str, Network]:
    """The models of all rows by name."""
    return {name: network_of(config, name) for name, config in _data()["models"].items()}


@cache
def known(device: str) -> Accelerator:
    """A device of the catalogue."""
    return accelerator(catalogue()[device])


def _single() -> Iterator[Row]:
    for row in _data()["rows"]:
        load = Load(row["prompt"], row["output"], concurrency=row["concurrency"])
        slow = "milliseconds" in row
        value = row["milliseconds" if slow else "tokens_per_second"]
        yield _row(row, Mesh(1, row["pp"], row["tp"]), load, value, slow)


def _tabled() -> Iterator[Row]:
    for table in _data()["tables"]:
        for lengths, values in table["rates"].items():
            prompt, output = map(int, lengths.split("/"))
            load = Load(prompt, output, requests=_data()["requests"][lengths])
            fitted = lengths in table.get("fitted", ())
            for sizes, value in zip(table["meshes"], values, strict=True):
                if not math.isnan(value):
                    yield _row(table, Mesh(1, sizes["pp"], sizes["tp"]), load, value, fitted=fitted)


def _row(
    data: dict[str, Any], mesh: Mesh, load: Load, value: float, slow: bool = False, fitted: bool = True
) -> Row:
    return Row(
        stack=data["stack"],
        model=data["model"],
        device=data["device"],
        precision=data["precision"],
        cache=data["cache"],
        mesh=mesh,
        load=load,
        value=float(value),
        milliseconds=slow,
        fitted=fitted,
    )
