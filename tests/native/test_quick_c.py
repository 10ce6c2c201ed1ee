"""What tests compile is compiled once, and again as soon as anything that it depends on is another."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from miaotui.compiler.codegen.native.toolchain import Toolchain, find_toolchain
from miaotui.compiler.errors import CompileError
from support.quick_c import compiled_once


def test_compiles_again_when_a_source_a_header_or_a_flag_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, run = [], Toolchain._run
    monkeypatch.setattr(Toolchain, "_run", lambda *given: runs.append(given) or run(*given))
    source, header = tmp_path / "answer.c", tmp_path / "answer.h"

    def answer(number: int, flag: str = "-DADDED=0") -> int:
        library = tmp_path / f"{number}.so"
        find_toolchain().compile([source], library, [flag])
        return int(ctypes.CDLL(str(library)).answer())

    with compiled_once(tmp_path / "kept"):
        source.write_text('#include "answer.h"\nint answer(void) { return ANSWER + ADDED; }\n')
        header.write_text("#define ANSWER 41\n")
        assert [answer(0), answer(1)] == [41, 41] and len(runs) == 1
        header.write_text("#define ANSWER 42\n")
        assert answer(2) == 42
        assert answer(3, "-DADDED=1") == 43
        source.write_text("int answer(void) { return 7; }\n")
        assert answer(4) == 7 and len(runs) == 4
        source.write_text("int answer(void) { return }\n")
        for _ in range(2):
            with pytest.raises(CompileError, match="refused"):
                answer(5)
