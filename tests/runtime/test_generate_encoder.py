"""Encoder-decoder generation: the source is encoded once, the decoder starts from its start token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from miaotui.compiler.errors import InputError, OptionError
from miaotui.runtime.executable import open_executable
from miaotui.runtime.onnxruntime import OnnxRuntimeRunner
from support.decoders import Attention, write_decoder
from support.translators import TinyTranslator

SOURCES = ["Guten Tag", "x", "Ein etwas längerer Satz.", "zwei"]


@pytest.mark.parametrize("attention", ["gqa", "standard"])
@pytest.mark.parametrize("masked", [True, False])
def test_translations_equal_the_whole_model(tmp_path: Path, attention: Attention, masked: bool) -> None:
    tiny = TinyTranslator(attention, masked=masked)
    write_decoder(tmp_path / "m", tiny)
    expected = [tiny.translate(list(text.encode()), 25) for text in SOURCES]
    with open_executable(tmp_path / "m") as executable:
        assert [list(executable.generate(text, max_tokens=25).ids) for text in SOURCES] == expected
        batch = executable.generate(SOURCES, max_tokens=25)
        assert [list(g.ids) for g in batch] == expected
        assert [g.prompt_tokens for g in batch] == [len(text.encode()) for text in SOURCES]
        drafted = executable.generate(SOURCES[2], max_tokens=25, speculate=4)
        assert list(drafted.ids) == expected[2]
        assert "".join(executable.stream(SOURCES[0], max_tokens=25)) == executable.generate(
            SOURCES[0], max_tokens=25
        ).text  # fmt: skip


def test_the_source_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_decoder(tmp_path / "m", TinyTranslator())
    runs: list[int] = []
    run = OnnxRuntimeRunner.run

    def counted(self: OnnxRuntimeRunner, inputs: Any) -> Any:
        runs.append(len(inputs["input_ids"]))
        return run(self, inputs)

    monkeypatch.setattr(OnnxRuntimeRunner, "run", counted)
    with open_executable(tmp_path / "m") as executable:
        executable.generate(SOURCES, max_tokens=9)
    assert runs == [len(SOURCES)]


def test_forced_tokens_of_the_config_are_kept(tmp_path: Path) -> None:
    config = {"forced_bos_token_id": 65, "forced_eos_token_id": 256, "eos_token_id": 256}
    write_decoder(tmp_path / "m", TinyTranslator(), config=config)
    with open_executable(tmp_path / "m") as executable:
        made = executable.generate("Guten Tag", max_tokens=10)
    assert (made.ids[0], made.ids[-1], len(made.ids), made.finish_reason) == (65, 256, 10, "stop")


def test_a_source_longer_than_the_decoders_context_is_fine(tmp_path: Path) -> None:
    tiny = TinyTranslator(context=16)
    write_decoder(tmp_path / "m", tiny)
    with open_executable(tmp_path / "m") as executable:
        made = executable.generate("a long source text " * 3, max_tokens=40)
        assert (len(made.ids), made.finish_reason) == (15, "length")
        with pytest.raises(OptionError, match="decoder-only"):
            executable.chat()
        with pytest.raises(InputError, match="encoder-decoder"):
            executable.logits("a")
