"""SmolLM2's GGUF file compiled to native code, once in a run of the tests, with what it is compared with."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import miaotui
import numpy as np
from miaotui.driver import compilation
from miaotui.driver.sample_text import with_sample_text
from miaotui.frontends.load import load
from support.models import smollm2_gguf
from support.once import once

LENGTH = 160


def smollm2_native() -> Path:
    """``smollm2.miaotui``, ``ids.npy`` (two texts, int64[2, LENGTH]) and its ``logits.npy``."""
    return once("smollm2-native", _make)


def _make(folder: Path) -> None:
    folder.mkdir()
    imported = load(smollm2_gguf())
    inputs = with_sample_text(imported.program, {"input_ids": np.zeros((2, LENGTH), np.int64)})
    np.save(folder / "ids.npy", inputs["input_ids"])
    np.save(folder / "logits.npy", imported.reference.run({"input_ids": inputs["input_ids"]})["logits"])
    with patch.object(compilation, "load", lambda *_: imported):
        miaotui.compile(
            smollm2_gguf(), output=folder / "smollm2.miaotui", backend="native", verify=False, timing=0.0,
            keep_source=False,
        ).close()  # fmt: skip
