"""The real MiniLM in int8 under ONNX Runtime: embeddings of sentences stay where they were."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import pytest
import torch
from support.models import MODELS, minilm_folder

COSINE, LEAST = 0.9985, 0.9975
"""Mean and least cosine of the sentences' embeddings; measured .9990 and .9984."""


def sentences() -> list[str]:
    from pydoc_data.topics import topics

    text = re.sub(r"\s+", " ", topics["assignment"] + topics["with"] + topics["import"])
    return [s for s in re.split(r"(?<=[.!?])\s+", text) if 40 < len(s) < 300][:24]


@pytest.mark.slow
def test_minilm_keeps_its_embeddings(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = minilm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    module = MODELS["minilm"].build().eval()
    cosines = []
    options: dict[str, Any] = {"backend": "ort", "precision": "int8", "timing": 0, "budget": 0.5}
    with miaotui.compile(folder, output=tmp_path / "m", **options) as made:
        told = {p["name"]: p for p in made.report["passes"]}
        runner = made.runner(threads=1)
        for sentence in sentences():
            item = tokenizer(sentence, return_tensors="pt")
            with torch.no_grad():
                wanted = module(**item).last_hidden_state[0].mean(0).numpy()
            names = ("input_ids", "attention_mask")
            got = next(iter(runner.run({name: item[name].numpy() for name in names}).values()))[0]
            got = got.mean(0) if got.ndim == 2 else got
            cosines.append(float(got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted)))
    assert told["integer-kernels"]["changed"] == 36
    assert np.mean(cosines) > COSINE and min(cosines) > LEAST, (np.mean(cosines), min(cosines))
