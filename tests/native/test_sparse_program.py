"""Pruned programs as native code: blocks of zeros survive joins, gates and turned weights to the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.codegen.isa import ISAS
from miaotui.compiler.codegen.native.speed import NARROW, WIDE, kernel_speed
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.driver.context import context_of
from miaotui.passes.base import PassContext
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.sparsity.prune import PruneWeights
from support.native_programs import CHECKED, build, lowered, opened
from support.numerics import scaled_error

Array = np.ndarray[Any, Any]

PRUNE = PruneWeights(pattern="block", sparsity=0.8, least=1, output=True)


SIZES = (48, 16, 40)


def layers() -> Program:
    """Three layers of one input, turned ones among them; then gate and up, and one back; of odd sizes."""
    rng = np.random.default_rng(3)
    b = Builder()
    x = b.input("x", ("rows", 72))

    def product(x: Any, name: str, rows: int, columns: int, *, turned: bool) -> Any:
        array = rng.standard_normal((rows, columns)) / np.sqrt(columns)
        if turned:
            return b.op("MatMul", x, b.weight(name, array.T))
        return b.op("MatMul", x, b.op("Transpose", b.weight(name, array), perm=[1, 0]))

    side = [product(x, f"side{n}", n, 72, turned=n == 16) for n in SIZES]
    for size, value in zip(SIZES, side, strict=True):
        b.output(b.op("Relu", value), f"y{size}")
    gate = product(x, "gate", 88, 72, turned=True)
    up = product(x, "up", 88, 72, turned=False)
    y = b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)
    b.output(product(y, "down", 72, 88, turned=True), "y")
    return b.program()


def fast(pattern: str, rows: int, columns: int, density: float) -> float:
    return 0.9 / max(density, 0.02) if pattern == "block" else 1.0


def test_a_pruned_program_is_packed_sparse_and_equals_its_reference(tmp_path: Path) -> None:
    program = layers()
    assert PRUNE.run(program, PassContext(speed=fast)).changed == 6
    made = lowered(program)
    text = build(made, tmp_path, CHECKED)
    assert text.count("WEIGHT_SPARSE") >= 3
    assert "WEIGHT_F32" not in text
    assert ".gated = 1" in text
    with opened(made, tmp_path) as runner:
        for rows in (1, 3, 20):
            feed = {"x": np.random.default_rng(rows).standard_normal((rows, 72)).astype(np.float32)}
            found, wanted = runner.run(feed), evaluate(program.main, feed)
            for name, array in wanted.items():
                assert scaled_error(found[name], array) < 1e-5, name


def test_layers_joined_in_whole_tiles_are_parts_of_their_own(tmp_path: Path) -> None:
    """Blocks of one weight are found from its own lists: two weights in a row are not one."""
    rng = np.random.default_rng(5)
    b = Builder()
    x = b.input("x", ("rows", 64))
    weights = [b.weight(f"side{n}", rng.standard_normal((64, n)) / 8) for n in (48, 16, 32)]
    sides = [b.op("MatMul", x, weight) for weight in weights]
    joined = b.op("Concat", *sides, axis=-1)
    b.output(b.op("Relu", joined), "y")
    program = b.program()
    assert PRUNE.run(program, PassContext(speed=fast)).changed == 3
    made = lowered(program)
    assert [node.op_type for node in made.main.graph].count("Linear") == 1
    assert build(made, tmp_path, CHECKED).count("WEIGHT_SPARSE") == 3
    with opened(made, tmp_path) as runner:
        for rows in (1, 20):
            feed = {"x": rng.standard_normal((rows, 64)).astype(np.float32)}
            assert scaled_error(runner.run(feed)["y"], evaluate(program.main, feed)["y"]) < 1e-5


def test_speed_is_of_the_measured_table() -> None:
    wide, narrow = ISAS["x86-64-v4-vnni"], ISAS["x86-64-v3"]
    assert wide.name.startswith(WIDE)
    assert narrow.name == NARROW
    for isa in (wide, narrow, ISAS["armv8.2-a"]):
        gains = [kernel_speed("block", 768, 768, density, isa) for density in (0.05, 0.1, 0.2, 0.5, 0.7)]
        assert gains == sorted(gains, reverse=True)
        assert gains[2] > 1.5
        between = kernel_speed("block", 768, 768, 0.15, isa)
        assert gains[2] < between < gains[1]
        assert kernel_speed("block", 768, 768, 0.0, isa) == gains[0]
        assert kernel_speed("block", 768, 768, 1.0, isa) == pytest.approx(0.7 * gains[-1])
    assert kernel_speed("int8", 768, 768, 1.0, wide) > 1
    for pattern in ("unstructured", "2:4", "rank"):
        assert kernel_speed(pattern, 768, 768, 0.1, wide) == 1.0


@pytest.mark.parametrize("arch", ["x86-64-v3", "x86-64-v4-vnni"])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_dense_weights_are_rounded_for_every_instruction_set(arch: str, bits: int) -> None:
    b = Builder()
    x = b.input("x", ("rows", 128))
    b.output(b.op("MatMul", x, b.weight("w", np.random.default_rng(0).standard_normal((128, 64)))), "y")
    context = context_of(CompileOptions(Target.parse(f"cpu:{arch}"), "native"))
    result = QuantizeWeights(bits=bits).run(b.program(), context)
    assert result.changed == 1 and not result.declined


def test_onnxruntime_and_native_say_different_things() -> None:
    native = context_of(CompileOptions(backend="native")).speed
    assert native("block", 3072, 768, 0.1) > native("block", 3072, 768, 0.3) > 1
    for backend in ("ort", "auto"):
        speed = context_of(CompileOptions(backend=backend)).speed
        assert speed("block", 3072, 768, 0.1) == 1.0
