"""A budget in native code: KL is held as built, and used; the folder generates; float16 is stored so."""

from __future__ import annotations

from pathlib import Path

import miaotui
import numpy as np
import pytest
import torch
from miaotui import driver
from miaotui.compiler.codegen.native.backend import NativeBackend
from miaotui.compiler.options import CompileOptions
from miaotui.driver.workbench import BACKENDS
from miaotui.runtime.compare import language_metrics
from support.language_models import DECODERS, build
from support.quick_c import plain

pytest.importorskip("transformers")


class Words(torch.nn.Module):
    """A table that is looked up in, and two products."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(500, 128)
        self.wide, self.narrow = torch.nn.Linear(128, 320, bias=False), torch.nn.Linear(320, 48, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.relu(self.wide(self.table(ids))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("budget", "nbytes"), [(2e-3, 2), (2e-6, 4)])
def test_what_8_bits_miss_lies_in_float16_in_the_weight_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float, nbytes: int
) -> None:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BACKENDS, "native", NativeBackend(plain()))
    model, folder = Words().eval(), tmp_path / "m"
    chosen = CompileOptions(
        precision="int4", backend="native", timing=0, budget=budget, goal="size", keep_source=False
    )
    ids = torch.arange(0, 500, 7)[None]
    with driver.compile(model, chosen, output=folder, inputs=(ids,)) as executable:
        rows = executable.report["budget"]["groups"]
        assert {row["format"] for row in rows} == {"fp16" if nbytes == 2 else "fp32"}
        assert executable.report["error"]["scaled"] <= budget
        whole = nbytes * (500 * 128 + 128 * 320 + 320 * 48)
        assert sum(row["bytes"] for row in rows) == whole
        (file,) = folder.glob("variants/*/model.weights")
        assert whole <= file.stat().st_size <= whole + 8192, "rows are packed in tiles of 16"
        halved = model.half().float() if nbytes == 2 else model
        (made,) = executable.run({executable.inputs[0].name: ids.numpy()}).values()
        np.testing.assert_allclose(made, halved(ids).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert miaotui.verify(folder, reference=Words().eval()).ok


@pytest.mark.slow
def test_formats_are_mixed_within_the_mean_kl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(BACKENDS, "native", NativeBackend(plain()))
    budget, folder = 4e-3, tmp_path / "m"
    architecture, config, options = DECODERS["llama"]
    model = build(architecture, config, {**options, "num_hidden_layers": 1, "vocab_size": 128})
    chosen = CompileOptions(precision="int4", backend="native", timing=0, budget=budget, goal="size")
    with driver.compile(model, chosen, output=folder) as executable:
        report = executable.report
        found = report["budget"]
        assert report["error"]["metric"] == found["metric"] == "kl"
        assert report["error"]["scaled"] <= found["error"] <= budget == report["error"]["tolerance"]
        formats = {row["format"].split()[0] for row in found["groups"]}
        assert formats == {"int4", "int8"}
        assert found["error"] > 0.1 * budget
        plan = executable.manifest.plan["quantize-weights"]
        assert {name for row in found["groups"] for name in row["weights"]} == plan.keys()
        weights = sum(row["bytes"] for row in found["groups"])
        assert weights < 0.4 * sum(p.numel() * 4 for p in model.parameters())
        ids = np.arange(3, 40)
        source = model(torch.from_numpy(ids[None])).logits.detach().numpy()[0]
        assert language_metrics(executable.logits(ids.tolist()), source).mean_kl < 10 * budget
        assert len(executable.generate(ids.tolist(), max_tokens=4).ids) == 4
    assert miaotui.verify(folder).ok
