"""Whole models through compile, open and run with ``--backend tvm``, against their source framework."""

from __future__ import annotations

from pathlib import Path

import miaotui
import numpy as np
import torch


def test_compiles_proves_and_runs_an_mlp(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.GELU(), torch.nn.Linear(40, 5)).eval()
    example = torch.randn(2, 24)
    options = {"backend": "tvm", "dims": {"batch": "1..64"}, "timing": 0.0}
    with miaotui.compile(model, inputs=(example,), output=tmp_path / "mlp.miaotui", **options) as built:
        assert built.manifest.variants["cpu-tvm"].backend == "tvm"
        assert built.manifest.certificate is not None and built.manifest.certificate.ok
        for batch in (1, 7):
            x = torch.randn(batch, 24)
            got = built.run({built.inputs[0].name: x})
            np.testing.assert_allclose(next(iter(got.values())), model(x).detach(), atol=1e-5)
        assert built.verify(model).ok
