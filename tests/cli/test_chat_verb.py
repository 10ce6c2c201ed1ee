"""``chat``: lines through a pipe, a terminal with Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.decoders import Tiny, write_decoder

TINY = Tiny(context=60_000, scale=0.3, positions=0.5, ends=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny.miaotui"
    write_decoder(folder, TINY)
    return folder


def answers(*questions: str, count: int = 12) -> list[str]:
    """Greedy answers of one conversation."""
    ids: list[int] = []
    texts = []
    for question in questions:
        ids += [258, *question.encode(), 259]
        texts.append(bytes(i for i in TINY.greedy(ids, count) if i < 256).decode("utf-8", "replace"))
        ids += [*texts[-1].encode(), 256]
    return texts


def piped(folder: Path, text: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "miaotui", "chat", str(folder), "-n", "12", *arguments]
    return subprocess.run(command, input=text, capture_output=True, timeout=60)


def test_every_line_of_a_pipe_is_a_message(tiny: Path) -> None:
    made = piped(tiny, b"Hello?\n\nWhy\n", "--stats")
    assert made.returncode == 0, made.stderr
    assert made.stdout.decode() == "".join(f"{text}\n" for text in answers("Hello?", "Why"))
    assert made.stderr.count(b"TTFT") == 2 and b"cached" in made.stderr


def test_commands_reset_and_leave(tiny: Path) -> None:
    made = piped(tiny, b"Hello?\n/reset\nHello?\n/what\n/exit\nnever\n")
    [answer] = answers("Hello?")
    assert made.stdout.decode() == f"{answer}\n" * 2
    assert b"/reset forgets" in made.stderr


def test_a_line_that_is_no_utf8_ends_with_its_number(tiny: Path) -> None:
    made = piped(tiny, b"Hello?\n\xff\xfe\n")
    assert made.returncode == 2
    assert b"error: stdin, line 2: is no UTF-8 text" in made.stderr


def test_a_conversation_that_outgrows_the_context_says_so(tmp_path: Path) -> None:
    write_decoder(tmp_path / "small", Tiny(context=64))
    made = piped(tmp_path / "small", b"Hello?\n" + b"x" * 80 + b"\n")
    assert made.returncode == 2
    assert b"context holds 64" in made.stderr and b"reset" in made.stderr


def test_a_model_without_a_template_exits_2(tmp_path: Path) -> None:
    write_decoder(tmp_path / "plain", Tiny(), template=None)
    made = piped(tmp_path / "plain", b"Hello?\n")
    assert made.returncode == 2 and b"no chat template" in made.stderr


class Terminal:
    """The verb behind a pseudo-terminal."""

    def __init__(self, *command: str) -> None:
        self.pid, self.handle = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [sys.executable, "-m", "miaotui", *command])
        self.shown = ""

    def wait_for(self, text: str, seconds: float = 30.0) -> None:
        import select

        end = time.monotonic() + seconds
        while text not in self.shown:
            ready, _, _ = select.select([self.handle], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"{text!r} did not come in {self.shown[-400:]!r}"
            try:
                self.shown += os.read(self.handle, 4096).decode("utf-8", "replace")
            except OSError:
                assert text in self.shown, self.shown[-400:]

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self.handle, text.encode())

    def close(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        os.close(self.handle)
        return os.waitstatus_to_exitcode(status)


def test_ctrl_c_stops_the_answer_only(tiny: Path) -> None:
    terminal = Terminal("chat", str(tiny), "-n", "50000")
    try:
        terminal.wait_for("> ")
        terminal.type("Hello?\n")
        terminal.wait_for("\n")
        time.sleep(1.0)
        os.kill(terminal.pid, signal.SIGINT)
        terminal.wait_for("cancelled")
        terminal.wait_for("> ")
        terminal.type("/reset\n")
        terminal.wait_for("forgotten")
        terminal.type("/exit\n")
    except BaseException:
        os.kill(terminal.pid, signal.SIGKILL)
        terminal.close()
        raise
    assert terminal.close() == 0


def test_ctrl_c_stops_the_answer_only_in_a_pipe_too(tiny: Path) -> None:
    command = [sys.executable, "-m", "miaotui", "chat", str(tiny), "-n", "50000"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"Hello?\n")
    process.stdin.flush()
    process.stdout.read(8)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(b"/exit\n", timeout=30)
    assert process.returncode == 0
    assert b"cancelled" in told and b"Traceback" not in told
