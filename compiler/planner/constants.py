"""Constants of the cost model: shares of data sheets' rates that are reached, what steps cost besides."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import OptionError
from .catalogue import Accelerator

SERVING, PLAIN = "tensorrt-llm", "plain"
"""The stack that is planned for on accelerators, and that on measured devices: nothing but the steps."""


@dataclass(frozen=True, slots=True)
class Stack:
    """What serves. ``sequence``: seconds that its host spends on each sequence under way, every step.

    ``captured``: a step's kernels are launched as one graph, else one by one. ``overlapped``: the host
    prepares the next step while the device computes, where one stage is all. ``spread``: with tensor
    parallelism over experts each rank attends to sequences of its own (attention data parallelism).
    ``sequences`` and ``tokens``: the most that a rank takes in one step.
    """

    sequence: float = 0.0
    captured: bool = True
    overlapped: bool = False
    spread: bool = False
    sequences: int = 2048
    tokens: int = 8192


@dataclass(frozen=True, slots=True)
class Constants:
    """``memory``, ``compute``, ``link``: shares of the data sheet's rates that are reached.

    ``half``: tokens a weight matrix meets at which half of ``compute`` is reached. ``kernel``: seconds of a
    kernel however small it is; ``launch``: seconds the host takes to launch one.
    """

    memory: float
    compute: float
    half: float
    kernel: float
    launch: float
    link: float
    stacks: Mapping[str, Stack]

    def on(self, device: Accelerator) -> Constants:
        """The constants for ``device``: measured rates are reached as they stand, by one token too."""
        if device.kernel is None:
            return self
        return replace(self, memory=1.0, compute=1.0, half=0.0, link=1.0, kernel=device.kernel)

    def stack(self, name: str | None, device: Accelerator) -> Stack:
        """The stack called ``name``, by default the one for ``device``. Raises: OptionError listing all."""
        if name is None:
            name = SERVING if device.kernel is None else PLAIN
        if name not in self.stacks:
            fix = f"give one of {', '.join(self.stacks)}"
            raise OptionError("--stack", f"{name!r} is unknown", fix)
        return self.stacks[name]


@cache
def fitted() -> Constants:
    """The constants fitted to published measurements; ``constants.toml`` names their source."""
    return constants_of(tomllib.loads((files(__package__) / "constants.toml").read_text("utf-8")))


def constants_of(data: Mapping[str, Any]) -> Constants:
    """Constants from TOML's or JSON's plain data."""
    plain = {f.name: float(data[f.name]) for f in fields(Constants) if f.name != "stacks"}
    stacks = {name: Stack(**stack) for name, stack in data["stacks"].items()}
    return Constants(**plain, stacks=stacks)
