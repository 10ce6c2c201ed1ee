"""int8 of a small CNN through the whole compile: measured on calibration data, proved, told in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import torch

RNG = np.random.default_rng(6)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.one, self.norm = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16)
        self.two, self.head = torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.one(x)).relu()
        return self.head((y + self.two(y)).relu().mean((2, 3)))


def test_convolutions_are_calibrated_and_run_as_integers(tmp_path: Path) -> None:
    x = RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)
    calib = tmp_path / "calib.npz"
    np.savez(calib, x=RNG.standard_normal((8, 3, 16, 16)).astype(np.float32))
    net = Net().eval()
    options: dict[str, Any] = {"backend": "ort", "precision": "int8", "timing": 0, "calib": str(calib)}
    with miaotui.compile(net, (torch.from_numpy(x),), output=tmp_path / "m", **options) as made:
        (told,) = [p for p in made.report["passes"] if p["name"] == "quantize-activations"]
        got = next(iter(made.run({"x": x}).values()))
    assert told["changed"] >= 3, told
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).numpy()
    assert 0 < np.abs(got - wanted).max() < 0.05 * max(1.0, np.abs(wanted).max())
