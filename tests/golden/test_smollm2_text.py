"""SmolLM2-135M in fp32: imported and compiled as golden models are, and writes what transformers writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import pytest
import torch
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.driver import compilation
from miaotui.frontends.load import load
from miaotui.runtime.executable import Executable
from support import golden
from support.cuts import Cut, lowered_program
from support.cuts import greedy as stages_write
from support.models import MODELS, smollm2_tokenizer

PROMPTS = (
    "The capital of France is",
    "one two three four, one two three four, one two",
)
COUNT = 64
TOGETHER = 24


@pytest.mark.slow
def test_equals_transformers_as_imported_as_compiled_and_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, one import, one compile: they take long."""
    model = MODELS["smollm2"]
    source = model.build()
    source.config.eos_token_id = None  # both sides write on behind the end of the text
    inputs = model.inputs(batch=1)
    imported = load(source, inputs=inputs)
    golden.equals_at_every_size(model, imported)
    golden.dimensions_are_dynamic(model, imported)
    golden.is_sound_and_knows_its_sources(imported)
    golden.holds_the_framework_s_own_weights(imported)

    monkeypatch.setattr(compilation, "load", lambda *_: imported)
    with miaotui.compile(
        source, inputs=inputs, output=tmp_path / "m", timing=0.0, keep_source=False, backend="ort"
    ) as executable:
        golden.is_called_like_its_source_and_equals_it(model, source, executable)
        texts = writes_what_transformers_writes(executable, source)
        for (ids, expected), mesh in zip(texts, (Mesh(pp=2), Mesh(tp=3)), strict=True):
            program, backend = lowered_program(executable), OnnxRuntimeBackend()
            parts = Cut.write(program, mesh, tmp_path / f"tp{mesh.tp}", backend)
            assert stages_write(parts, ids, COUNT) == expected, mesh


def writes_what_transformers_writes(executable: Executable, source: Any) -> list[tuple[list[int], list[int]]]:
    """Greedy tokens; in chunks, a batch, with drafts; logits. Prompts, and what was written behind them."""
    tokenizer = smollm2_tokenizer()
    texts = [(ids, greedy(source, ids)) for ids in (tokenizer(prompt)["input_ids"] for prompt in PROMPTS)]
    for ids, expected in texts:
        assert list(executable.generate(ids, max_tokens=COUNT).ids) == expected
    prompts, beginnings = [ids for ids, _ in texts], [text[:TOGETHER] for _, text in texts]
    for options in ({"speculate": 8}, {"rows": 2, "prefill_chunk": 5}):
        made = executable.generate(prompts, max_tokens=TOGETHER, **options)
        assert [list(g.ids) for g in made] == beginnings, options
    repeating = executable.generate(prompts[1], max_tokens=TOGETHER, speculate=8)
    assert repeating.timings.accepted > 0
    ids = [*texts[0][0], *texts[0][1]]
    with torch.no_grad():
        wanted = source(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(executable.logits(ids), wanted, atol=2e-3)
    return texts


def greedy(source: Any, ids: list[int]) -> list[int]:
    """Continuation in transformers."""
    out = source.generate(
        torch.tensor([ids]), max_new_tokens=COUNT, do_sample=False, use_cache=True, eos_token_id=None,
        pad_token_id=2,
    )  # fmt: skip
    found: list[int] = out[0, len(ids) :].tolist()
    return found
