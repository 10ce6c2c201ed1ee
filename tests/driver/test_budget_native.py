"""A language model under a budget in native code: KL is held as built, and used; the folder generates."""

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
