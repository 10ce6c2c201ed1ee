"""``miaotui compile``: options reach the driver, results reach stdout, nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pytest
from miaotui import driver
from miaotui.cli.compile import default_output
from miaotui.compiler.options import CompileOptions, InputSpec, Target
from miaotui.compiler.program import DimRange
from support.command_line import Call

REPORT_KEYS = {
    "schema", "model", "target", "stages", "passes", "waterfall", "layers", "ops", "nodes", "error",
    "latency", "sizes", "budget", "choice", "partition", "notes", "dry_run", "output",
}  # fmt: skip
DRY_KEYS = {"schema", "dry_run", "model", "target", "passes", "ops", "nodes", "unsupported"}
PASS_KEYS = {"name", "changed", "hits", "declined", "seconds", "reverted"}


class Compiled:
    """What the driver returns, as far as the command line looks."""

    report: ClassVar[dict[str, Any]] = {
        "schema": 2,
        "model": "m",
        "target": "cpu",
        "stages": [],
        "passes": [
            {"name": "fuse-qkv", "changed": 2, "hits": ["a: x"], "declined": ["b: weight is not constant"],
             "seconds": 0.01, "reverted": "", "gain": None},
            {"name": "fuse-gelu", "changed": 0, "hits": [], "declined": [], "seconds": 0.0,
             "reverted": "costs time", "gain": None},
        ],
        "layers": [],
        "waterfall": {
            "rows": [
                {"pass": "fuse-qkv", "nodes": 2, "declined": 1, "seconds": -0.004, "how": "left out",
                 "bytes": 0, "error": None, "reverted": ""},
                {"pass": "fuse-gelu", "nodes": 0, "declined": 0, "seconds": None, "how": "", "bytes": 0,
                 "error": None, "reverted": "costs time"},
                {"pass": "fuse-norm", "nodes": 0, "declined": 3, "seconds": None, "how": "", "bytes": 0,
                 "error": None, "reverted": ""},
                {"pass": "smooth-activations", "nodes": 1, "declined": 0, "seconds": None,
                 "how": "quantize-weights", "bytes": 0, "error": None, "reverted": ""},
                {"pass": "quantize-weights", "nodes": 4, "declined": 0, "seconds": -0.006, "how": "prefix",
                 "bytes": -12_000_000, "error": 2e-3, "reverted": ""},
                {"pass": "convert-fp16", "nodes": 1, "declined": 0, "seconds": None, "how": "",
                 "bytes": 0, "error": None, "reverted": ""},
            ],
            "exact": {"seconds": -0.004, "error": 1e-7},
            "total": {"nodes": 8, "declined": 4, "seconds": -0.01, "bytes": -12_000_000, "error": 2e-3},
            "unmeasured": ["convert-fp16"],
            "why": "--timing is 0",
        },
        "budget": None,
        "choice": None,
        "partition": None,
        "ops": {"before": {"MatMul": 6, "Add": 4}, "after": {"MatMul": 2, "Add": 4}},
        "nodes": {"before": 10, "after": 6},
        "error": {"metric": "scaled", "scaled": 2e-7, "tolerance": 1e-4, "reference": "torch 2.13.0"},
        "latency": {"source": {"median": 0.03, "p90": 0.031}, "optimized": {"median": 0.02, "p90": 0.021},
                    "ratio": 1.5, "ci95": [1.4, 1.6], "threads": 2, "inputs": {"x": "float32[1,8]"}},
        "sizes": {"weights": 88_000_000},
        "notes": [],
    }  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def driver_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Arguments of every ``driver.compile``; it prints on stdout, as libraries do."""
    calls: list[Any] = []

    def compile_model(
        source: object,
        options: CompileOptions,
        *,
        output: Path,
        inputs: Any,
        progress: Any,
        save_ir: Path | None,
    ) -> Compiled:
        print("a library prints this")
        with progress.stage("import"):
            progress.note("a note")
        calls.append((source, options, output, inputs, save_ir))
        return Compiled()

    monkeypatch.setitem(vars(driver), "compile", compile_model)
    return calls


def test_defaults_are_those_of_the_options(call: Call, driver_calls: list[Any]) -> None:
    call("compile", "m.onnx")
    [(source, options, output, inputs, save_ir)] = driver_calls
    assert (source, options, output) == ("m.onnx", CompileOptions(), Path("m.miaotui"))
    assert inputs is None
    assert save_ir is None


def test_every_option_reaches_the_driver(call: Call, driver_calls: list[Any], tmp_path: Path) -> None:
    call(
        "compile", "m.onnx", "-o", "out", "--target", "cuda:sm_90", "--backend", "ort", "--precision", "fp16",
        "-O3", "--enable", "fuse-a", "--enable", "b{k=1}", "--disable", "c", "--input", "x:1x3",
        "--dim", "batch=1..64", "--budget", "0.01", "-t", "2", "--no-strict", "--timing", "3", "--no-verify",
        "--no-keep-source", "--seed", "7", "--save-ir", tmp_path,
    )  # fmt: skip
    [(_, options, output, _, save_ir)] = driver_calls
    assert options == CompileOptions(
        target=Target("cuda", "sm_90"), backend="ort", precision="fp16", opt=3, enable=("fuse-a", "b{k=1}"),
        disable=("c",), inputs=(InputSpec("x", (1, 3)),), dims=(("batch", DimRange(1, 64)),), budget=0.01,
        threads=2, strict=False, timing=3.0, verify=False, keep_source=False, seed=7,
    )  # fmt: skip
    assert (output, save_ir) == (Path("out"), tmp_path)


def test_precision_sparsity_rank_cache_calibration_and_goal_reach_the_driver(
    call: Call, driver_calls: list[Any]
) -> None:
    given = ("--sparsity", "channels:0.3,block:0.8", "--rank", "0.5", "--cache", "int8", "--goal", "size")
    call("compile", "m.onnx", "--precision", "bf16", "--calib", "data.npz", "--budget", "0.02", *given)
    assert driver_calls[0][1] == CompileOptions(
        precision="bf16", sparsity="channels:0.3,block:0.8", rank=0.5, cache="int8", calib="data.npz",
        budget=0.02, goal="size",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flag", "value", "fix"),
    [
        ("--sparsity", "stripes:0.5", "write 0.5, 2:4, block:0.8"),
        ("--sparsity", "1.5", "write 0.5, 2:4"),
        ("--sparsity", "0.5,block:0.8", "choose one"),
        ("--rank", "1.5", "such as 0.5"),
        ("--cache", "int3", "use one of auto, fp32, fp16, int8"),
        ("--goal", "both", "use one of speed, size"),
        ("--precision", "int2", "use one of fp32, fp16, bf16, int8, int4"),
        ("--budget", "-1", "such as"),
    ],
)
def test_options_that_do_not_parse_are_told_what_does(
    call: Call, driver_calls: list[Any], flag: str, value: str, fix: str
) -> None:
    result = call("compile", "m.onnx", flag, value, "-q")
    assert result.exit_code == 2
    assert flag in result.stderr and fix in " ".join(result.stderr.split())
    assert not driver_calls


@pytest.mark.parametrize("flag", ["--target", "--device", "--provider"])
def test_target_has_the_names_other_tools_use(call: Call, driver_calls: list[Any], flag: str) -> None:
    call("compile", "m.onnx", flag, "CUDAExecutionProvider")
    assert driver_calls[0][1].target == Target("cuda")


def test_npz_inputs_are_example_arrays(call: Call, driver_calls: list[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((2, 3)))
    call("compile", "m.onnx", "--input", tmp_path / "x.npz", "--input", "y:1x2")
    [(_, options, _, inputs, _)] = driver_calls
    assert inputs["x"].shape == (2, 3)
    assert [spec.name for spec in options.inputs] == ["y"]


def test_pickled_npz_is_refused(call: Call, driver_calls: list[Any], tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([{}], dtype=object))
    result = call("compile", "m.onnx", "--input", tmp_path / "x.npz")
    assert result.exit_code == 2
    assert not driver_calls


def test_json_is_all_there_is_on_stdout(call: Call, driver_calls: list[Any]) -> None:
    result = call("compile", "m.onnx", "--format", "json")
    report = json.loads(result.stdout)
    assert set(report) == REPORT_KEYS
    assert "a library prints this" in result.stderr


def test_stages_and_notes_go_to_stderr_unless_quiet(call: Call, driver_calls: list[Any]) -> None:
    told = call("compile", "m.onnx").stderr
    assert "import" in told
    assert "note: a note" in told
    assert "import" not in call("compile", "m.onnx", "-q").stderr


def test_table_tells_counts_passes_error_latency_and_size(call: Call, driver_calls: list[Any]) -> None:
    table = call("compile", "m.onnx").stdout
    for told in ("MatMul", "fuse-qkv", "reverted: costs time", "2e-07", "torch 2.13.0", "30.0 ms → 20.0 ms",
                 "1.50× [1.40, 1.60]", "2 threads", "88.0 MB", "m.miaotui"):  # fmt: skip
        assert told in table, told


def test_waterfall_tells_what_each_pass_gave_and_what_was_not_measured(
    call: Call, driver_calls: list[Any]
) -> None:
    lines = call("compile", "m.onnx").stdout.splitlines()
    rows = {line.split()[0]: line.split() for line in lines if line}
    assert rows["fuse-qkv"][1:6] == ["2", "1", "-4", "–", "–"]
    assert rows["quantize-weights"][1:6] == ["4", "–", "-6", "-12", "+0.002"]
    assert "measured with quantize-weights" in " ".join(rows["smooth-activations"])
    assert rows["convert-fp16"][-2:] == ["not", "measured"]
    assert "fuse-norm" not in rows  # it declined, and changed nothing
    assert rows["source"][3:8] == ["8", "4", "-10", "-12", "+0.002"]
    assert any("convert-fp16: --timing is 0" in line for line in lines)
    assert any(line.startswith("fuse-norm") for line in call("compile", "m.onnx", "-v").stdout.splitlines())


def test_why_not_gives_the_reason_per_node(call: Call, driver_calls: list[Any]) -> None:
    from miaotui.passes.pipeline import all_passes

    name = next(iter(all_passes()))
    told = call("compile", "m.onnx", "--why-not", name).stdout
    assert name in told


def test_log_file_keeps_stages_and_errors(
    call: Call, driver_calls: list[Any], tmp_path: Path, compile_raises: Callable[[BaseException], None]
) -> None:
    log = tmp_path / "log.txt"
    call("compile", "m.onnx", "-q", "--log-file", log)
    assert "import: done after" in log.read_text()
    compile_raises(KeyError("lost"))
    call("compile", "m.onnx", "-q", "--log-file", log)
    assert "Traceback" in log.read_text()


def test_default_output_is_the_models_name(tmp_path: Path) -> None:
    (tmp_path / "minilm").mkdir()
    assert default_output("a/b/bert.v2.onnx") == Path("bert.v2.miaotui")
    assert default_output(f"{tmp_path}/minilm/") == Path("minilm.miaotui")


def test_dry_run_writes_nothing_and_builds_nothing(
    call: Call, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    result = call("compile", model, "--dry-run", "--format", "json", "-q")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) == DRY_KEYS
    assert all(set(entry) >= PASS_KEYS for entry in report["passes"])
    assert report["nodes"]["before"] == 5
    assert report["nodes"]["after"] < 5
    assert sorted(tmp_path.rglob("*")) == before


def test_save_ir_writes_the_program_after_each_pass(call: Call, model: Path, tmp_path: Path) -> None:
    arguments = ("compile", model, "-o", tmp_path / "out", "--save-ir", tmp_path / "ir", "--no-verify", "-q")
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    assert list((tmp_path / "ir").glob("*.txt"))


def test_real_report_has_the_stable_keys(call: Call, model: Path, tmp_path: Path) -> None:
    arguments = ("compile", model, "-o", tmp_path / "out", "--timing", "1", "-t", "1", "--format", "json")
    result = call(*arguments)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) == REPORT_KEYS
    assert all(set(entry) >= PASS_KEYS for entry in report["passes"])
    assert {"scaled", "tolerance", "reference"} <= report["error"].keys()
    assert {"source", "optimized", "ratio", "ci95", "threads", "inputs"} <= report["latency"].keys()
    assert {"median", "p90", "p99", "mean"} <= report["latency"]["optimized"].keys()
    assert (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize("content", [b"", b"\x08\x01garbage", b"PK\x03\x04"])
def test_broken_model_is_an_error_and_nothing_is_written(call: Call, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    result = call("compile", tmp_path / "bad.onnx", "-o", tmp_path / "out", "-q")
    assert result.exit_code == 2
    assert "bad.onnx" in result.stderr
    assert "Traceback" not in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]
