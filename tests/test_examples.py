"""The examples run, and print what their readers are told to expect."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import miaotui
import pytest
from support.models import minilm_folder
from support.smollm2 import smollm2_native

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
QUICK = {"timing": 0.0, "keep_source": False, "backend": "ort"}


def run(name: str, folder: Path, *arguments: str, stdin: str = "") -> str:
    """What ``examples/name`` prints, run in ``folder``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        input=stdin, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    miaotui.compile(minilm_folder(), output=folder / ".demo" / "minilm.miaotui", **QUICK).close()
    return folder


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / ".demo").mkdir()
    (folder / ".demo" / "smollm2.miaotui").symlink_to(smollm2_native() / "smollm2.miaotui")
    return folder


def blocks(printed: str) -> dict[str, str]:
    """What is printed below each question."""
    parts = [block.split("\n", 1) for block in printed.strip().split("\n\n")]
    return dict(parts)


@pytest.mark.slow
def test_semantic_search(minilm):
    found = blocks(run("semantic_search.py", minilm))
    assert "robbed" in found["who stole the money?"].splitlines()[0]
    assert "pointer" in found["a memory bug in software"].splitlines()[0]
    assert "glacier" in found["climate change"]
    assert "telescope" in run("semantic_search.py", minilm, "astronomy").splitlines()[2]


@pytest.mark.slow
def test_question_answering(minilm):
    found = blocks(run("question_answering.py", minilm))
    assert "230 kilometres" in found["How fast can trains go under the Alps?"]
    assert "Fleming" in found["Who discovered that mould kills bacteria?"]
    assert "stay awake" in found["What did monks use coffee for?"]
    assert "Jordan" in found["Why is the Dead Sea shrinking?"]


def test_recommendation(tmp_path):
    *viewers, _, last = run("recommendation.py", tmp_path).splitlines()
    assert len(viewers) == 6 and all("who likes" in line for line in viewers)
    hits, possible = [int(word) for word in last.split() if word.isdigit()][:2]
    assert hits > 0.9 * possible


@pytest.mark.slow
def test_translation(tmp_path):
    first, _, *translated = run("translation.py", tmp_path, "four hundred twenty one").splitlines()
    right, count = [int(word) for word in first.split() if word.isdigit()]
    assert right > 0.9 * count
    assert translated == ["four hundred twenty one → vierhunderteinundzwanzig"]


@pytest.mark.slow
def test_text_generation(smollm2):
    printed = run("text_generation.py", smollm2)
    assert "The capital of France is Paris" in printed
    assert "4 texts together" in printed
    assert "2 + 2 = 4" in run("text_generation.py", smollm2, "1 + 1 = 2, 2 + 2 =")


@pytest.mark.slow
def test_chat(smollm2):
    printed = run("chat.py", smollm2, stdin="What is the tallest mountain?\nWho climbed it first?\n\n")
    assert printed.count("SmolLM2:") == 2
    assert "Everest" in printed.split("you:")[1]
