"""Exit codes, and errors in words instead of tracebacks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import miaotui
import pytest
from miaotui.compiler.errors import (
    ArtifactError,
    CompileError,
    InputError,
    InternalError,
    ModelError,
    OptionError,
    PlacementError,
    Problem,
    ToolError,
    UnsupportedError,
    VerificationError,
)
from support.command_line import Call

EXIT_CODES = {
    OptionError: 2,
    ModelError: 2,
    InputError: 2,
    ArtifactError: 2,
    UnsupportedError: 3,
    PlacementError: 3,
    ToolError: 3,
    VerificationError: 1,
}


@pytest.mark.parametrize(("kind", "code"), EXIT_CODES.items(), ids=lambda p: getattr(p, "__name__", p))
def test_error_says_place_fact_and_fix_and_exits_by_its_kind(
    call: Call, compile_raises: Callable[[BaseException], None], kind: type[CompileError], code: int
) -> None:
    compile_raises(kind("a.onnx", "is broken", "mend it"))
    result = call("compile", "a.onnx", "-q")
    assert result.exit_code == code
    assert result.stderr.splitlines() == ["error: a.onnx: is broken", "fix: mend it"]
    assert result.stdout == ""


def test_every_problem_is_told(call: Call, compile_raises: Callable[[BaseException], None]) -> None:
    problems = [Problem(f"node {i}", "has no kernel") for i in range(3)]
    compile_raises(UnsupportedError.of(problems))
    lines = call("compile", "a.onnx", "-q").stderr.splitlines()
    assert lines == [f"error: node {i}: has no kernel" for i in range(3)]


def test_long_lines_are_not_wrapped_and_brackets_survive(
    call: Call, compile_raises: Callable[[BaseException], None]
) -> None:
    fact = "float32[batch, 3] " * 30
    compile_raises(ModelError("a.onnx", fact.strip()))
    assert call("compile", "a.onnx", "-q").stderr == f"error: a.onnx: {fact.strip()}\n"


@pytest.mark.parametrize("error", [InternalError("after fuse-qkv: dangling value"), KeyError("x")])
def test_our_defect_asks_for_a_report_with_the_version(
    call: Call, compile_raises: Callable[[BaseException], None], error: BaseException
) -> None:
    compile_raises(error)
    result = call("compile", "a.onnx", "-q")
    assert result.exit_code == 70
    assert "internal error" in result.stderr
    assert miaotui.__version__ in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("error", [KeyError("x"), ModelError("a", "b")])
def test_verbose_shows_the_traceback(
    call: Call, compile_raises: Callable[[BaseException], None], error: BaseException
) -> None:
    compile_raises(error)
    assert "Traceback" in call("compile", "a.onnx", "-q", "-v").stderr


def test_interrupt_exits_as_a_shell_expects(
    call: Call, compile_raises: Callable[[BaseException], None]
) -> None:
    compile_raises(KeyboardInterrupt())
    result = call("compile", "a.onnx", "-q")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_file_that_cannot_be_written_is_the_users_business(
    call: Call, compile_raises: Callable[[BaseException], None]
) -> None:
    compile_raises(PermissionError(13, "Permission denied", "/out"))
    result = call("compile", "a.onnx", "-q")
    assert (result.exit_code, result.stderr) == (2, "error: /out: permission denied\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("compile",),
        ("compile", "m.onnx", "--no-such-flag"),
        ("compile", "m.onnx", "-O9"),
        ("compile", "m.onnx", "--threads", "many"),
        ("compile", "m.onnx", "--format", "xml"),
        ("no-such-verb",),
    ],
)
def test_usage_errors_exit_2(call: Call, arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--target", "tpu", "--target"),
        ("--precision", "fp13", "--precision"),
        ("--backend", "tvm13", "--backend"),
        ("--input", "x", "--input"),
        ("--dim", "batch", "--dim"),
        ("--budget", "-1", "--budget"),
        ("--threads", "0", "--threads"),
        ("--why-not", "fuse-nothing", "--why-not"),
        ("--enable", "no-such-pass", "--enable"),
        ("--disable", "no-such-pass", "--disable"),
        ("--input", "missing.npz", "missing.npz"),
    ],
)
def test_bad_option_values_exit_2_and_name_the_option(
    call: Call, model: Path, tmp_path: Path, flag: str, value: str, told: str
) -> None:
    result = call("compile", model, "-o", tmp_path / "out", "-q", flag, value)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {told}")
    assert not (tmp_path / "out").exists()


def test_version(call: Call) -> None:
    assert call("--version").stdout == f"miaotui {miaotui.__version__}\n"


def test_reader_that_leaves_early_is_no_error() -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "miaotui", "passes", "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    told = child.stderr.read()
    child.wait(timeout=60)
    child.stderr.close()
    assert told == ""


def test_console_script_compile_is_the_verb(tmp_path: Path) -> None:
    run = [sys.executable, "-c", "from miaotui.cli.app import compile_main; compile_main()"]
    result = subprocess.run([*run, str(tmp_path / "no.onnx")], capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "no.onnx" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_loads_no_framework() -> None:
    code = (
        "import sys; from miaotui.cli import app\n"
        "loaded = {'torch', 'onnx', 'onnx_ir', 'numpy', 'onnxruntime', 'networkx'} & sys.modules.keys()\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
