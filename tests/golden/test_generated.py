"""From a Hugging Face folder to tokens: what executables generate is what transformers generates."""

from __future__ import annotations

from pathlib import Path

import miaotui
import numpy as np
import pytest
from support.language_models import DECODERS, TRANSLATORS, VOCABULARY, build, generated, translated

COUNT = 24
RANDOM = np.random.default_rng(5)
PROMPTS = [RANDOM.integers(3, VOCABULARY, n).tolist() for n in (4, 15, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama"])
def test_decoders_generate_as_transformers_does(family: str, tmp_path: Path) -> None:
    model = build(*DECODERS[family])
    model.save_pretrained(tmp_path / "model")
    expected = generated(model, PROMPTS, COUNT)
    with miaotui.compile(tmp_path / "model", timing=0.0, threads=1, backend="ort") as executable:
        for options in ({}, {"rows": 2, "prefill_chunk": 4}, {"speculate": 5}):
            made = executable.generate(PROMPTS, max_tokens=COUNT, **options)
            assert [list(g.ids) for g in made] == expected, options
        assert list(executable.generate(PROMPTS[0], max_tokens=COUNT).ids) == expected[0]
        tokens = executable.logits(PROMPTS[1])
        np.testing.assert_array_equal(tokens[-1].argmax(), expected[1][0])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoders_generate_as_transformers_does(family: str, tmp_path: Path) -> None:
    model = build(*TRANSLATORS[family])
    model.save_pretrained(tmp_path / "model")
    length = max(map(len, PROMPTS))
    ids = np.array([[*prompt, *[0] * (length - len(prompt))] for prompt in PROMPTS])
    mask = np.array([[1] * len(prompt) + [0] * (length - len(prompt)) for prompt in PROMPTS])
    expected = translated(model, ids, mask, COUNT)
    with miaotui.compile(tmp_path / "model", timing=0.0, threads=1, backend="ort") as executable:
        made = executable.generate(PROMPTS, max_tokens=COUNT)
        assert [list(g.ids) for g in made] == expected
        assert [list(executable.generate(p, max_tokens=COUNT).ids) for p in PROMPTS] == expected
