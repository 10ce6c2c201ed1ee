"""``embed``: vectors as JSON and .npy, from arguments, files and stdin."""

from __future__ import annotations

import json
from pathlib import Path

import miaotui
import numpy as np
import pytest
from support.command_line import Call
from support.text_folders import sentence_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    sentence_folder(folder / "source", {}, options={"prompts": {"query": "fox "}})
    output = folder / "encoder.miaotui"
    miaotui.compile(folder / "source", output=output, timing=0.0, keep_source=False, backend="ort").close()
    return output


def test_vectors_are_written_as_json_and_npy(call: Call, encoder: Path, tmp_path: Path) -> None:
    printed = json.loads(call("embed", encoder, "a fox", "东京").stdout)
    assert printed["schema"] == 1
    assert [row["text"] for row in printed["embeddings"]] == ["a fox", "东京"]
    (tmp_path / "texts.txt").write_text("a fox\n\n东京\n", "utf-8")
    made = tmp_path / "x.npy"
    assert call("embed", encoder, "-f", tmp_path / "texts.txt", "--format", "npy", "-o", made).exit_code == 0
    vectors = np.load(made)
    assert vectors.dtype == np.float32 and vectors.shape == (2, 32)
    assert np.allclose(vectors, [row["embedding"] for row in printed["embeddings"]], atol=1e-6)
    call("embed", encoder, "a fox", "东京", "-o", tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_text("utf-8")) == printed


def test_prompt_is_put_in_front(call: Call, encoder: Path) -> None:
    asked = json.loads(call("embed", encoder, "jumps", "--prompt", "query").stdout)["embeddings"]
    plain = json.loads(call("embed", encoder, "fox jumps").stdout)["embeddings"]
    assert np.allclose(asked[0]["embedding"], plain[0]["embedding"], atol=1e-6)


def test_mistakes_are_named(call: Call, encoder: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    for arguments, words in (
        ([encoder], "TEXT: is missing"),
        ([encoder, "a", "-f", tmp_path / "latin.txt"], "together with --file"),
        ([encoder, "-f", tmp_path / "latin.txt"], "no UTF-8"),
        ([encoder, "a", "--prompt", "passage"], "has no prompt 'passage'"),
        ([tmp_path / "nothing", "a"], "does not exist"),
    ):
        result = call("embed", *arguments)
        assert result.exit_code == 2 and words in result.stderr, result.stderr
