"""SmolLM2's GGUF file imported and compiled to native code once in a run of the tests.

Beside it lies what it is compared with.
"""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import miaotui
import numpy as np
from miaotui.compiler.program import Program
from miaotui.driver import compilation
from miaotui.driver.sample_text import with_sample_text
from miaotui.frontends.load import load
from support.models import smollm2_gguf
from support.once import once
from support.sessions import run_program

LENGTH = 160
SHORT = 24
TWELVE = np.arange(12).reshape(1, 12)


def smollm2_native() -> Path:
    """``smollm2.miaotui``, ``ids.npy`` (two texts, int64[2, LENGTH]) and its ``logits.npy``.

    Of the import: ``program.npy``, what its graph says of the first SHORT of ``ids``, ``twelve.npy``, what
    its reference says of TWELVE, and ``facts.json``.
    """
    return once("smollm2-native", _make)


def _make(folder: Path) -> None:
    folder.mkdir()
    imported = load(smollm2_gguf())
    inputs = with_sample_text(imported.program, {"input_ids": np.zeros((2, LENGTH), np.int64)})
    np.save(folder / "ids.npy", inputs["input_ids"])
    np.save(folder / "logits.npy", imported.reference.run({"input_ids": inputs["input_ids"]})["logits"])
    ((found, _),) = run_program(imported.program, {"input_ids": inputs["input_ids"][:, :SHORT]})
    np.save(folder / "program.npy", found["logits"])
    np.save(folder / "twelve.npy", imported.reference.run({"input_ids": TWELVE})["logits"])
    (folder / "facts.json").write_text(json.dumps(_facts(imported.program)))
    with patch.object(compilation, "load", lambda *_: imported):
        miaotui.compile(
            smollm2_gguf(), output=folder / "smollm2.miaotui", backend="native", verify=False, timing=0.0,
            keep_source=False,
        ).close()  # fmt: skip


def _facts(program: Program) -> dict[str, object]:
    texts = {name: asset.decode() for name, asset in program.assets.items() if isinstance(asset, bytes)}
    return {"context": program.context, **program.source, **texts}
