"""How many times as fast as dense float32 the kernels of other weights are: a table, measured."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np

from ..isa import Isa

TABLE = Path(__file__).with_name("speed.tsv")
"""Written by ``benchmarks/write_native_speed.py``; its first line says where."""

WIDE, NARROW = "x86-64-v4", "x86-64-v3"
"""Instruction sets that were measured: of 512-bit registers, and of shorter ones, as all others have."""


def kernel_speed(kernel: str, rows: int, columns: int, density: float, isa: Isa) -> float:
    """Times as fast as the dense float32 kernel, at least, whatever the number of activation rows is.

    ``kernel``: ``block`` of a weight [rows, columns] whose blocks of 16 rows by 1 column are used to a share
    of ``density``; ``int8`` and ``int4`` in blocks of 32, and ``fp16``, whose ``density`` is not asked. 1.0
    for all that there is no kernel for. Weights of a few tiles gain what large ones do: all their work is in
    the kernel.
    """
    family = WIDE if isa.name.startswith(WIDE) else NARROW
    measured = _table().get((family, kernel))
    if measured is None or not rows or not columns:
        return 1.0
    density = max(density, min(measured)) if kernel == "block" else 1.0
    known = sorted(measured)
    beyond = max(1.0, density / known[-1])  # where time goes by the blocks
    gains = np.array([measured[each] for each in known])
    wanted = [np.interp(np.log(density), np.log(known), np.log(gains[:, i])) for i in range(gains.shape[1])]
    return float(np.exp(min(wanted))) / beyond


@cache
def _table() -> dict[tuple[str, str], dict[float, tuple[float, ...]]]:
    """By instruction set and kernel, and density: the gains with 1, 8 and 128 rows of activations."""
    found: dict[tuple[str, str], dict[float, tuple[float, ...]]] = {}
    with TABLE.open(encoding="utf-8") as file:
        lines = (line for line in file if not line.startswith("#"))
        for isa, kernel, density, *gains in csv.reader(lines, delimiter="\t"):
            found.setdefault((isa, kernel), {})[float(density)] = tuple(map(float, gains))
    return found
