"""What each weight lost, with pattern, density and gain; and what formats that remove channels store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.options import CompileOptions
from miaotui.driver.context import context_of
from miaotui.driver.meter import Made, Meter
from miaotui.driver.metric import Metric
from miaotui.frontends.load import load
from miaotui.passes.lowrank import FactorWeights
from miaotui.passes.precision.weights import QuantizeWeights
from miaotui.passes.sparsity import PruneChannels

WIDTH, HIDDEN = 64, 256
FLOAT = 4 * WIDTH * HIDDEN


@pytest.fixture
def gated(tmp_path: Path) -> Path:
    """x: float32[batch, 64] → (x·gate · x·up)·down, hidden width 256."""
    rng = np.random.default_rng(0)

    def weight(name: str, rows: int, columns: int) -> ir.Value:
        return b.weight(name, rng.standard_normal((rows, columns)) / rows**0.5)

    b = Builder()
    x = b.input("x", ("batch", WIDTH))
    made = [b.op("MatMul", x, weight(name, WIDTH, HIDDEN)) for name in ("gate", "up")]
    b.output(b.op("MatMul", b.op("Mul", *made), weight("down", HIDDEN, WIDTH)), "y")
    ir.save(b.model(), tmp_path / "gated.onnx")
    return tmp_path / "gated.onnx"


def made_in(model: Path, *steps: Any) -> dict[str, Made]:
    """The group of ``down`` in every format that the passes offer."""
    samples = [{"x": np.random.default_rng(3).standard_normal((16, WIDTH)).astype(np.float32)}]
    context = context_of(CompileOptions(backend="ort"))
    with Meter(load(model).program, steps, context, samples, Metric(None), "int8") as meter:
        group = next(group for group in meter.groups if group.weights == ("down",))
        made = {each.label: meter.made(group, each) for each in meter.formats}
    return {label: found for label, found in made.items() if found is not None}


def test_removed_channels_make_their_reader_smaller_and_others_too(gated: Path) -> None:
    made = made_in(gated, PruneChannels(share=0.75), QuantizeWeights(bits=8))
    plain, removed = made["fp32"], made["prune-channels 0.75"]
    assert (plain.nbytes, plain.elsewhere) == (FLOAT, 0)
    assert (removed.nbytes, removed.read, removed.elsewhere) == (FLOAT // 4, FLOAT // 4, -2 * FLOAT * 3 // 4)
    rounded, both = made["int8 g32"], made["prune-channels 0.75 + int8 g32"]
    assert both.nbytes == pytest.approx(rounded.nbytes / 4, abs=1)
    assert both.elsewhere == pytest.approx(-2 * 0.75 * rounded.nbytes, abs=2)


def test_rounded_factors_are_as_small_as_they_are(gated: Path) -> None:
    made = made_in(gated, FactorWeights(rank=0.5, force=True), QuantizeWeights(bits=8))
    (label,) = (name for name in made if name.startswith("factor") and "+" not in name)
    share = made[label].nbytes / FLOAT
    assert 0.3 < share < 0.7
    assert made[f"{label} + int8 g32"].nbytes == pytest.approx(share * made["int8 g32"].nbytes, abs=1)


def test_the_report_has_pattern_density_and_gain_of_each_layer(gated: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"backend": "ort", "timing": 0.0, "budget": None, "precision": "int4"}
    enable = ("prune-weights{force=true}", "factor-weights{force=true}")
    with miaotui.compile(
        gated,
        output=tmp_path / "m",
        sparsity="channels:0.1,0.05",
        rank=0.9,
        enable=enable,
        verify=False,
        **options,
    ) as executable:
        rows = executable.report["layers"]
    found = {(row["pass"], row["weight"]): row for row in rows}
    channels = found["prune-channels", "down"]
    assert (channels["pattern"], channels["density"], channels["gain"]) == ("channels", 0.875, None)
    for name, shape in (("gate", [224, 64]), ("up", [224, 64]), ("down", [64, 224])):
        row = found["prune-weights", name]
        assert row["shape"] == shape and row["method"] in ("magnitude", "wanda", "sparsegpt")
        assert (row["pattern"], row["density"], row["gain"]) == ("unstructured", 0.95, 1.0)
    assert all(
        0.5 < row["density"] < 1 and row["rank"] > 0
        for key, row in found.items()
        if key[0] == "factor-weights"
    )
    assert {key[0] for key in found} == {"prune-channels", "prune-weights", "factor-weights"}
