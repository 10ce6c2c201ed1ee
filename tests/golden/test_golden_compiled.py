"""Every golden model, compiled for the CPU, equals its framework and is called as its framework is."""

from __future__ import annotations

import miaotui
import pytest
from support.golden import is_called_like_its_source_and_equals_it
from support.models import MODELS, Golden

CASES = [pytest.param(golden, id=golden.name) for golden in MODELS.values() if not golden.slow]
"""The slow one, SmolLM2, is imported and compiled once, in ``test_smollm2_text.py``."""


@pytest.mark.parametrize("golden", CASES)
def test_executable_is_called_like_its_source_and_equals_it(golden: Golden) -> None:
    model = golden.build()
    with miaotui.compile(model, golden.inputs(batch=1), timing=0.0, threads=1, backend="ort") as executable:
        is_called_like_its_source_and_equals_it(golden, model, executable)
