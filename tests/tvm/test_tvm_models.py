"""Whole models through compile, open and run with ``--backend tvm``, against their source framework."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import pytest
import torch
from support import models

OPTIONS: dict[str, Any] = {"backend": "tvm", "timing": 0.0}


def test_compiles_proves_and_runs_an_mlp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 200), torch.nn.GELU(), torch.nn.Linear(200, 37)).eval()
    options = {**OPTIONS, "dims": {"batch": "1..64"}}
    with miaotui.compile(model, inputs=(torch.randn(2, 24),), output=tmp_path / "mlp", **options) as built:
        assert built.manifest.variants["cpu-tvm"].backend == "tvm"
        assert built.manifest.certificate is not None and built.manifest.certificate.ok
        for batch in (1, 7, 19):
            x = torch.randn(batch, 24)
            got = built.run({built.inputs[0].name: x})
            np.testing.assert_allclose(next(iter(got.values())), model(x).detach(), atol=1e-5)
        assert built.verify(model).ok


@pytest.mark.parametrize("name", ["dlrm", "llama"])
def test_proves_a_golden_model(name: str, tmp_path: Path) -> None:
    golden = models.MODELS[name]
    with miaotui.compile(golden.build(), inputs=golden.inputs(), output=tmp_path / name, **OPTIONS) as built:
        certificate = built.manifest.certificate
        assert certificate is not None and certificate.ok and certificate.tolerance == 1e-4
        assert certificate.variant == "cpu-tvm"
        if name == "llama":
            assert built.manifest.decoding is not None
            prompt = list(range(1, 9))
            assert list(built.generate(prompt, max_tokens=6).ids) == _greedy(built, prompt, 6)


def _greedy(built: miaotui.Executable, prompt: list[int], count: int) -> list[int]:
    """What the uncached source writes."""
    row = list(prompt)
    for _ in range(count):
        outputs = built.run({built.inputs[0].name: np.array([row])}, "source")
        row.append(int(outputs["logits"][0, -1].argmax()))
    return row[len(prompt) :]
