"""Small stacks of linear layers on disk, whose weights differ in how much a format costs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
from miaotui.compiler.ir.builder import Builder

WIDTH = 128


def stack(path: Path, depth: int = 3) -> Path:
    """x: float32[batch, 128] → ``depth`` times Relu(x·w), heavier tails in later weights → y."""
    rng = np.random.default_rng(0)
    b = Builder()
    x = b.input("x", ("batch", WIDTH))
    for index in range(depth):
        weight = rng.standard_t(3 + 20 * (depth - index), (WIDTH, WIDTH)) / WIDTH**0.5
        x = b.op("Relu", b.op("MatMul", x, b.weight(f"w{index}", weight.astype(np.float32))))
    b.output(x, "y")
    ir.save(b.model(), path)
    return path


def branches(path: Path) -> Path:
    """Three products that read one input, as query, key and value do, then one that reads their sum."""
    rng = np.random.default_rng(1)
    b = Builder()
    x = b.input("x", ("batch", WIDTH))
    made = [
        b.op("MatMul", x, b.weight(name, rng.standard_t(2 + 4 * i, (WIDTH, WIDTH)).astype(np.float32) / 12))
        for i, name in enumerate("qkv")
    ]
    total = b.op("Tanh", b.op("Add", b.op("Add", made[0], made[1]), made[2]))
    weight = (rng.normal(size=(WIDTH, WIDTH)) / 12).astype(np.float32)
    b.output(b.op("MatMul", total, b.weight("o", weight)), "y")
    ir.save(b.model(), path)
    return path
