"""--cache end to end: what the native cache is kept in, how near its logits are, and who declines it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import pytest
import torch
from miaotui.compiler.errors import OptionError
from miaotui.compiler.options import CompileOptions
from miaotui.passes.pipeline import pipeline
from support.language_models import DECODERS, build


@pytest.mark.slow
def test_native_keeps_the_cache_in_int8(tmp_path: Path) -> None:
    """Compiled, proved against the source step by step, and written: the state's type is in the signature."""
    ids = np.random.default_rng(4).integers(0, 60, (1, 24))
    model = build(*DECODERS["llama"])
    options: dict[str, Any] = {"backend": "native", "cache": "int8", "timing": 0, "budget": 0.05}
    with miaotui.compile(
        model, {"input_ids": torch.from_numpy(ids)}, output=tmp_path / "m", **options
    ) as made:
        specs = made.manifest.entries["decode"].inputs
    caches = [spec for spec in specs if len(spec.shape or ()) == 4]
    assert caches and all("int8" in str(spec.dtype).lower() for spec in caches)


@pytest.mark.parametrize("cache", ["fp16", "int8"])
def test_onnxruntime_names_the_backend_that_has_it(cache: Any) -> None:
    with pytest.raises(OptionError, match="use --backend native, or --cache fp32"):
        pipeline(CompileOptions(backend="ort", cache=cache))
    assert pipeline(CompileOptions(backend="ort", cache="fp32"))


def test_a_program_without_a_cache_declines_it_by_reason(tmp_path: Path) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(32, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x).relu()

    x = torch.zeros(2, 32)
    with miaotui.compile(
        Layer(), (x,), output=tmp_path / "m", backend="native", cache="int8", timing=0
    ) as made:
        told = [p for p in made.report["passes"] if p["name"] == "native-cache"]
    assert "the program keeps no KV cache that could be in int8" in str(told)
