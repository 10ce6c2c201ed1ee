"""Every golden model, imported, computes what its framework computes, layer by layer, at several sizes."""

from __future__ import annotations

import pytest
from miaotui.frontends.base import Import
from miaotui.frontends.load import load
from support.golden import (
    dimensions_are_dynamic,
    equals_at_every_size,
    holds_the_framework_s_own_weights,
    is_sound_and_knows_its_sources,
)
from support.models import MODELS, Golden

CASES = [pytest.param(golden, id=golden.name) for golden in MODELS.values() if not golden.slow]
"""The slow one, SmolLM2, is imported and compiled once, in ``test_smollm2_text.py``."""


@pytest.fixture(scope="module", params=CASES)
def golden(request: pytest.FixtureRequest) -> tuple[Golden, Import]:
    model: Golden = request.param
    return model, load(model.build(), inputs=model.inputs(batch=1))


def test_equals_its_framework_at_every_size(golden: tuple[Golden, Import]) -> None:
    equals_at_every_size(*golden)


def test_default_dimensions_are_dynamic(golden: tuple[Golden, Import]) -> None:
    dimensions_are_dynamic(*golden)


def test_program_is_sound_and_knows_its_sources(golden: tuple[Golden, Import]) -> None:
    is_sound_and_knows_its_sources(golden[1])


def test_weights_are_the_frameworks_own(golden: tuple[Golden, Import]) -> None:
    if golden[0].framework != "torch":
        pytest.skip("Keras cells are reordered")
    holds_the_framework_s_own_weights(golden[1])
