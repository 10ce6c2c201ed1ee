"""Golden models, imported and compiled, compute what their framework does, layer by layer, at all sizes."""

from __future__ import annotations

from pathlib import Path

import miaotui
import pytest
from miaotui.driver import compilation
from miaotui.frontends.load import load
from support.cuts import WHOLE_SUITE, equals_the_whole_in_every_cut
from support.golden import (
    dimensions_are_dynamic,
    equals_at_every_size,
    holds_the_framework_s_own_weights,
    is_called_like_its_source_and_equals_it,
    is_sound_and_knows_its_sources,
)
from support.models import MODELS, Golden

CASES = [pytest.param(golden, id=golden.name) for golden in MODELS.values() if not golden.slow]
"""The slow one, SmolLM2, also writes text, in ``test_smollm2_text.py``."""

CUT = ("dlrm", "bert", "llama", "t5", "keras_cnn", "keras_lstm")
"""Those that are cut into stages and replicas too; all with MIAOTUI_WHOLE_SUITE=1."""


@pytest.mark.parametrize("golden", CASES)
def test_equals_its_framework_as_imported_and_as_compiled(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One import for all: exporting a model takes longest. Cut, it gives the bits of the whole."""
    model = golden.build()
    inputs = golden.inputs(batch=1)
    imported = load(model, inputs=inputs)
    equals_at_every_size(golden, imported)
    dimensions_are_dynamic(golden, imported)
    is_sound_and_knows_its_sources(imported)
    if golden.framework == "torch":  # Keras cells are reordered
        holds_the_framework_s_own_weights(imported)

    monkeypatch.setattr(compilation, "load", lambda *_: imported)
    with miaotui.compile(model, inputs, timing=0.0, threads=1, backend="ort") as executable:
        is_called_like_its_source_and_equals_it(golden, model, executable)
    if WHOLE_SUITE or golden.name in CUT:
        number = list(MODELS).index(golden.name)
        equals_the_whole_in_every_cut(imported.program, golden.inputs(3, batch=5), tmp_path, number)
