"""The planner's constants: fitted to published rows by least squares of log ratios, and written as TOML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TypeAlias

import numpy as np
from miaotui.compiler.errors import require
from miaotui.compiler.planner.constants import PLAIN, SERVING, Constants, Stack
from numpy.typing import NDArray
from published import Row

Values: TypeAlias = NDArray[np.float64]

RANGES: Mapping[str, tuple[float, float, float]] = {
    "memory": (0.5, 0.85, 0.97),
    "compute": (0.2, 0.5, 0.95),
    "half": (1.0, 50.0, 2000.0),
    "kernel": (1e-6, 4e-6, 2e-5),
    "launch": (2e-6, 5e-6, 5e-5),
    "link": (0.2, 0.6, 1.0),
    SERVING: (1e-7, 6e-6, 1e-4),
    "vllm-0.5": (1e-6, 2e-4, 1e-2),
}
"""Least, start and most of each constant; those of stacks are a host's seconds for each sequence."""


def constants_from(values: Mapping[str, float]) -> Constants:
    """Constants with ``values`` for what is fitted; what a stack does else is known of it.

    TensorRT-LLM overlaps the host's work with the device's, and ran its models of experts with attention
    data parallelism; vLLM 0.5 takes 256 sequences at most; ONNX Runtime launches kernels one by one.
    """
    stacks = {
        PLAIN: Stack(),
        SERVING: Stack(sequence=values[SERVING], overlapped=True, spread=True),
        "vllm-0.5": Stack(sequence=values["vllm-0.5"], sequences=256),
        "onnxruntime-genai": Stack(captured=False),
    }
    plain = {field.name: values[field.name] for field in fields(Constants) if field.name != "stacks"}
    return Constants(**plain, stacks=stacks)


def fit(rows: Sequence[Row]) -> dict[str, float]:
    """The constants under which the model's figures are nearest to the rows', by least squares of logs."""
    optimize = require("scipy.optimize", extra="bench")
    low, start, high = (np.log([bounds[i] for bounds in RANGES.values()]) for i in range(3))

    def residuals(at: Values) -> Values:
        return log_ratios(constants_from(_named(at)), rows)

    found = optimize.least_squares(residuals, start, bounds=(low, high), x_scale=0.3)
    return _named(found.x)


def log_ratios(constants: Constants, rows: Sequence[Row]) -> Values:
    """Logarithms of predicted over published figures; what does not fit memory counts as nearly nothing."""
    return np.array([math.log(max(row.predicted(constants), 1e-9) / row.value) for row in rows])


def errors(constants: Constants, rows: Sequence[Row]) -> Values:
    """Predicted less published figures, as shares of the published ones."""
    return np.exp(log_ratios(constants, rows)) - 1


def left_out(rows: Sequence[Row]) -> Values:
    """The error of each row under constants that were fitted to all others."""
    found = [errors(constants_from(fit([*rows[:i], *rows[i + 1 :]])), [row])[0] for i, row in enumerate(rows)]
    return np.array(found)


def as_toml(values: Mapping[str, float], rows: int, median: float, worst: float) -> str:
    """The file the planner reads."""
    constants = constants_from(values)
    lines = [
        f"# Fitted to {rows} rows of benchmarks/published.toml, which names their sources, by",
        "# benchmarks/bench_planner.py --write. Each row from constants fitted to all others: median error",
        f"# {median:.1%}, worst {worst:.1%}.",
        *(f"{f.name} = {values[f.name]:.3g}" for f in fields(Constants) if f.name != "stacks"),
    ]
    usual = Stack()
    for name, stack in constants.stacks.items():
        lines += ["", f'[stacks."{name}"]']
        changed = ((f.name, getattr(stack, f.name)) for f in fields(Stack))
        lines += [f"{key} = {_toml(value)}" for key, value in changed if value != getattr(usual, key)]
    return "\n".join(lines) + "\n"


def _toml(value: float) -> str:
    return str(value).lower() if isinstance(value, bool | int) else f"{value:.3g}"


def _named(at: Values) -> dict[str, float]:
    return dict(zip(RANGES, map(float, np.exp(at)), strict=True))
