"""SmolLM2-135M in fp32: the text that transformers writes, however it is run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from miaotui.runtime.executable import Executable
from support.models import MODELS, smollm2_gguf

PROMPTS = (
    "The capital of France is",
    "one two three four, one two three four, one two",
)
COUNT = 256


@pytest.fixture(scope="module")
def source() -> Any:
    return MODELS["smollm2"].build()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    path = smollm2_gguf()
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)


@pytest.fixture(scope="module")
def executable(source: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Executable]:
    import miaotui
    import torch

    ids = torch.tensor([[1, 504, 3575, 282, 4649, 314, 7042]])
    source.config.eos_token_id = None  # both sides write on behind the end of the text
    folder = tmp_path_factory.mktemp("smollm2") / "smollm2.miaotui"
    made = miaotui.compile(
        source, inputs={"input_ids": ids}, output=folder, timing=0.5, keep_source=False, backend="ort"
    )
    with made as opened:
        yield opened


@pytest.fixture(scope="module")
def texts(source: Any, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Prompt and greedy continuation in transformers, tokens."""
    import torch

    made = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        out = source.generate(
            torch.tensor([ids]),
            max_new_tokens=COUNT,
            do_sample=False,
            use_cache=True,
            eos_token_id=None,
            pad_token_id=2,
        )
        made.append((ids, out[0, len(ids) :].tolist()))
    return made


@pytest.mark.slow
def test_writes_what_transformers_writes(executable: Executable, source: Any, texts: Any) -> None:
    """256 greedy tokens; in chunks, a batch, with drafts; logits; one test, for its fixtures take long."""
    import torch

    for ids, expected in texts:
        assert list(executable.generate(ids, max_tokens=COUNT).ids) == expected
    prompts, expected = [ids for ids, _ in texts], [text[:32] for _, text in texts]
    for options in ({"speculate": 8}, {"rows": 2, "prefill_chunk": 5}):
        made = executable.generate(prompts, max_tokens=32, **options)
        assert [list(g.ids) for g in made] == expected, options
    repeating = executable.generate(prompts[1], max_tokens=32, speculate=8)
    assert repeating.timings.accepted > 0
    ids = [*texts[0][0], *texts[0][1]]
    with torch.no_grad():
        wanted = source(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(executable.logits(ids), wanted, atol=2e-3)
