"""``generate``: text on stdout, the rest on stderr, exit codes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from support.command_line import Call
from support.decoders import Tiny, write_decoder

TINY = Tiny(context=120_000, scale=0.3, positions=0.5, ends=False)
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tiny.miaotui"
    write_decoder(folder, TINY)
    return folder


def text_of(prompt: str, count: int) -> str:
    ids = TINY.greedy(list(prompt.encode()), count)
    return bytes(i for i in ids if i < 256).decode("utf-8", "replace")


def test_text_goes_to_stdout_and_timings_to_stderr(call: Call, tiny: Path) -> None:
    plain = call("generate", tiny, PROMPT, "-n", 24)
    assert (plain.exit_code, plain.stdout, plain.stderr) == (0, text_of(PROMPT, 24) + "\n", "")
    timed = call("generate", tiny, PROMPT, "-n", 24, "--stats")
    assert timed.stdout == plain.stdout
    for told in ("16 + 24 tokens", "TTFT", "prefill", "decode", "TPOT p50", "length"):
        assert told in timed.stderr, told


def test_json_tells_everything(call: Call, tiny: Path) -> None:
    data = json.loads(call("generate", tiny, PROMPT, "-n", 6, "--logprobs", 2, "--format", "json").stdout)
    [made] = data["generations"]
    assert (data["schema"], made["text"], len(made["ids"])) == (1, text_of(PROMPT, 6), 6)
    assert (made["finish_reason"], made["prompt_tokens"]) == ("length", 16)
    assert len(made["logprobs"]) == 6 and len(made["logprobs"][0]["top"]) == 2
    assert {"ttft", "prefill_rate", "decode_rate", "tpot_p50", "tpot_p99"} <= set(made["timings"])


def test_options_reach_the_generator(call: Call, tiny: Path) -> None:
    def drawn(*options: Any) -> str:
        return str(call("generate", tiny, PROMPT, "-n", 24, *options).stdout)

    greedy = drawn()
    assert drawn("--temperature", 0) == drawn("--speculate", 4) == greedy
    hot = drawn("--temp", 3, "--seed", 0)
    assert hot != greedy and hot == drawn("--temp", 3, "--seed", 0) != drawn("--temp", 3, "--seed", 1)
    assert drawn("--temp", 3, "--top-k", 1) == greedy
    assert drawn("--repetition-penalty", 1.5) != greedy
    stop = greedy[3:6]
    assert drawn("--stop", stop, "--stop", "unseen") == greedy[: greedy.find(stop)] + "\n"


def test_prompts_of_a_file_run_together(call: Call, tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\nzwei 二\nthree\n", encoding="utf-8")
    result = call("generate", tiny, "--file", file, "-n", 9, "--format", "json", "--rows", 2)
    made = json.loads(result.stdout)["generations"]
    assert [g["text"] for g in made] == [text_of(p, 9) for p in ("one", "zwei 二", "three")]
    assert call("generate", tiny, "--file", file, "-n", 9).stdout == "".join(g["text"] + "\n" for g in made)


def test_a_message_goes_through_the_template(call: Call, tiny: Path) -> None:
    made = json.loads(call("generate", tiny, "Hi", "--system", "S", "-n", 5, "--format", "json").stdout)
    ids = [260, ord("S"), 258, *b"Hi", 259]
    assert made["generations"][0]["ids"] == TINY.greedy(ids, 5)
    plain = json.loads(call("generate", tiny, "Hi", "--chat", "-n", 5, "--format", "json").stdout)
    assert plain["generations"][0]["ids"] == TINY.greedy(ids[2:], 5)


def run(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "miaotui", *map(str, arguments)]
    return subprocess.run(command, input=given, capture_output=True, timeout=60)


def test_stdin_is_a_prompt(tiny: Path) -> None:
    for place in ((), ("-",)):
        made = run("generate", tiny, *place, "-n", 12, given=PROMPT.encode())
        assert (made.returncode, made.stdout.decode()) == (0, text_of(PROMPT, 12) + "\n")


def test_text_that_is_no_utf8_is_named_by_its_byte(tiny: Path, tmp_path: Path) -> None:
    made = run("generate", tiny, "-", given=b"caf\xe9 noir")
    assert made.returncode == 2
    assert made.stderr.startswith(b"error: stdin: is no UTF-8 text: byte 3 is 0xe9")
    (tmp_path / "latin.txt").write_bytes(b"ok\n\xff")
    assert run("generate", tiny, "--file", tmp_path / "latin.txt").returncode == 2
    argument = run("generate", tiny, os.fsdecode(b"caf\xe9"))
    assert argument.returncode == 2 and b"Traceback" not in argument.stderr


@pytest.mark.parametrize(
    "arguments",
    [("x" * 130_000,), ("",), ("a", "--temperature", "-1"), ("a", "--top-p", "2"), ("a", "--file", "x.txt"),
     ("a", "--stop", "")],
)  # fmt: skip
def test_what_does_not_fit_exits_2(call: Call, tiny: Path, arguments: tuple[str, ...]) -> None:
    result = call("generate", tiny, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ") and "fix: " in result.stderr


def test_a_folder_without_a_cache_exits_3_and_says_why(call: Call, folder: Path) -> None:
    result = call("generate", folder, "a")
    assert result.exit_code == 3
    assert "keeps state between tokens" in result.stderr


def test_a_model_is_compiled_for_the_call(call: Call, tmp_path: Path) -> None:
    program = Tiny().program()
    data = ir.serde.serialize_model(program.entries["main"]).SerializeToString()
    (tmp_path / "tiny.onnx").write_bytes(data)
    result = call("generate", tmp_path / "tiny.onnx", "a", "-t", 1)
    assert result.exit_code == 3
    assert "note: compiling tiny.onnx for this call" in result.stderr
    assert "was compiled without one" in result.stderr, "there is no tokenizer beside it"


def test_a_folder_that_is_none_exits_2(call: Call, tmp_path: Path) -> None:
    assert call("generate", tmp_path / "missing", "a").exit_code == 2


def started(command: list[str]) -> subprocess.Popen[bytes]:
    # unbuffered: `communicate` would not see what a buffer has read ahead
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)


@pytest.mark.parametrize("extra", [(), ("--stats",)])
def test_ctrl_c_keeps_the_text_and_tells_the_timings(tiny: Path, extra: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "miaotui", "generate", str(tiny), PROMPT, "-n", "100000", *extra]
    process = started(command)
    assert process.stdout is not None
    first = process.stdout.read(8)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=30)
    assert process.returncode == 130
    text = (first + rest).decode()
    assert len(text) > 100 and text.endswith("\n")
    assert text_of(PROMPT, 30).startswith(text[:25])
    assert b"cancelled" in told and b"tok/s" in told and b"Traceback" not in told


def test_ctrl_c_in_a_file_of_prompts_keeps_what_is_done(tiny: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("short\n" + "long\n", encoding="utf-8")
    command = [sys.executable, "-m", "miaotui", "generate", str(tiny), "-f", str(file), "--rows", "1"]
    process = started([*command, "-n", "3000"])
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert text_of("short", 20).startswith((first + rest).decode()[:10])
    assert b"interrupted after 1 of 2 prompts" in told


def test_a_reader_that_leaves_ends_it_quietly(tiny: Path) -> None:
    command = f"{sys.executable} -m miaotui generate {tiny} hello -n 100000 | head -c 20"
    made = subprocess.run(["bash", "-c", command], capture_output=True, timeout=60)
    assert len(made.stdout) == 20 and b"Traceback" not in made.stderr


def test_bench_tells_prefill_and_decode(call: Call, tiny: Path) -> None:
    table = call("bench", tiny, "-p", "16,32", "-n", "8", "-b", "1,2", "-r", 2, "-t", 1, "-q")
    assert table.exit_code == 0, table.stderr
    for told in ("TTFT", "prefill tok/s", "decode tok/s", "TPOT p50", "peak memory", "load"):
        assert told in table.stdout, told
    assert sum(line.startswith("cpu-ort") for line in table.stdout.splitlines()) == 4


def test_bench_against_another_folder_is_interleaved(call: Call, tiny: Path) -> None:
    result = call("bench", tiny, "-p", "8", "-n", "8", "--against", tiny, "-t", 1, "-q", "--format", "json")
    data = json.loads(result.stdout)
    assert set(data) == {"schema", "figures", "load", "conditions", "peak_rss"}
    ours, theirs = data["figures"]
    assert (ours["name"], theirs["name"]) == ("cpu-ort", "tiny.miaotui (cpu-ort)")
    assert {"ratio", "low", "high", "verdict"} == set(ours["decode_speedup"]) == set(ours["prefill_speedup"])
    assert theirs["decode_speedup"] is None
    assert ours["workload"] == {"prompt": 8, "new": 8, "batch": 1}
    assert 0 < ours["tpot_p50"] <= ours["tpot_p99"]


@pytest.mark.parametrize(
    "arguments", [("-p", "a"), ("-p", "0"), ("-n", "-3"), ("-p", "200000"), ("-b", "1,,2")]
)
def test_bench_of_impossible_sizes_exits_2(call: Call, tiny: Path, arguments: tuple[str, ...]) -> None:
    assert call("bench", tiny, *arguments, "-q").exit_code == 2


def test_bench_times_plain_runs_when_asked(call: Call, tiny: Path) -> None:
    result = call("bench", tiny, "--size", "batch=1,tokens=8", "--runs", 5, "-t", 1, "-q", "--format", "json")
    assert result.exit_code == 0, result.stderr
    assert "candidates" in json.loads(result.stdout)
