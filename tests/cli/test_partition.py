"""``compile --dp --pp``: a folder in parts that every verb takes; what is refused, and what is near."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from miaotui.compiler.artifact import record_file
from miaotui.compiler.manifest import Manifest
from miaotui.runtime.parallel import runner as parallel_runner
from support.command_line import Call

PLAN = "variants/cpu-ort/plan.json"


@pytest.fixture(scope="module")
def source(folder: Path) -> Path:
    return folder.parent / "tiny.onnx"


@pytest.fixture(scope="module")
def parts(source: Path, tmp_path_factory: pytest.TempPathFactory, call: Call) -> Path:
    """The small model compiled for two replicas of two stages."""
    path = tmp_path_factory.mktemp("parts") / "m"
    made = call("compile", source, "-o", path, "--dp", 2, "--pp", 2, "--timing", 0.05, "-t", 1, "-q")
    assert made.exit_code == 0, made.stderr
    assert "2 replicas × 2 stages: 4 ranks, 'main'" in made.stdout
    return path


@pytest.fixture
def copied(parts: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(parts, tmp_path / "copied"))


def recorded(folder: Path) -> None:
    """Make the manifest agree with the files, so that only the plan knows better."""
    path = folder / "manifest.json"
    manifest = Manifest.loads(path.read_text(), "m")
    for name in manifest.files:
        manifest.files[name] = record_file(folder / name)  # type: ignore[index]
    path.write_text(manifest.dumps())


@pytest.mark.parametrize("executor", ["threads", "processes{timeout=60}"])
def test_parts_run_as_the_source_does(parts: Path, call: Call, tmp_path: Path, executor: str) -> None:
    x = np.random.default_rng(1).standard_normal((5, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    outputs = {}
    for variant in ("cpu-ort", "source"):
        file = tmp_path / f"{variant}.npz"
        ran = call(
            "run",
            parts,
            "-i",
            tmp_path / "x.npz",
            "-o",
            file,
            "--variant",
            variant,
            "--executor",
            executor,
            "-t",
            1,
        )
        assert ran.exit_code == 0, ran.stderr
        outputs[variant] = np.load(file)["y"]
    np.testing.assert_allclose(outputs["cpu-ort"], outputs["source"], rtol=1e-5, atol=1e-5)


def test_parts_are_proved_timed_and_shown(parts: Path, source: Path, call: Call) -> None:
    proved = call("verify", parts, "--reference", source)
    assert proved.exit_code == 0 and "cpu-ort equals" in proved.stdout, proved.stderr
    timed = call("bench", parts, "--runs", 5, "--format", "json")
    assert timed.exit_code == 0, timed.stderr
    assert [each["name"] for each in json.loads(timed.stdout)["candidates"]] == ["cpu-ort", "source"]
    summary = json.loads(call("inspect", parts, "--check", "--format", "json").stdout)
    assert summary["partition"]["mesh"] == {"dp": 2, "pp": 2, "tp": 1}
    stages = summary["partition"]["entries"]["main"]["stages"]
    assert sum(stage["nodes"] for stage in stages) == summary["variants"]["cpu-ort"]["nodes"] == 4
    assert sum(summary["partition"]["weights"]) == 4 * (8 * 16 + 16 + 16 * 4)
    graphs = [call("inspect", parts, "--ir", "--rank", rank).stdout for rank in ("0", "1.0")]
    assert sum(text.count(" = ") for text in graphs) == 4 and "MatMul" in graphs[0]
    refused = call("inspect", parts, "--ir", "--rank", "2")
    assert refused.exit_code == 2 and "it has 0.0, 1.0" in refused.stderr


def test_the_report_tells_the_stages(parts: Path) -> None:
    report = json.loads((parts / "report.json").read_text())
    assert report["error"]["ok"] and report["partition"]["ranks"] == 4
    main = report["partition"]["entries"]["main"]
    assert main["sent"] == main["sizes"]["batch"] * 16 * 4 and 0 < main["balance"] <= 1


@pytest.mark.parametrize(
    ("flags", "facts"),
    [
        (("--pp", 9), ("9 stages for 4 nodes", "use at most 4", "nearest: --pp 4 or --pp 3")),
        (("--pp", 9, "--tp", 0), ("--tp: 0 is less than 1",)),
        (
            ("--pp", 2, "--memory", "200"),
            ("832 bytes of weights do not fit --pp 2", "--pp 2: is not possible"),
        ),
        (("--pp", 1, "--memory", "700"), ("do not fit one piece with 700 bytes a device", "nearest: --pp 2")),
        (("--memory", "lots"), ("'lots' is no amount of memory",)),
        (("--pp", 2, "--backend", "tvm"), ("tvm builds no parts", "use ort or native")),
        (("--tp", 2, "--backend", "native"), ("native builds no parts", "such as --tp asks for", "use ort")),
    ],
)
def test_what_is_impossible_is_refused_with_what_is_near(
    model: Path, tmp_path: Path, call: Call, flags: tuple[object, ...], facts: tuple[str, ...]
) -> None:
    found = call("compile", model, "-o", tmp_path / "m", *flags, "--timing", 0, "-q")
    assert found.exit_code == 2 and not (tmp_path / "m").exists()
    told = found.stderr.replace("\nfix: ", "; ")
    assert all(fact in told for fact in facts), found.stderr


def test_files_that_are_not_the_plans_are_refused_by_name(copied: Path, call: Call) -> None:
    part = copied / "variants/cpu-ort/stage1.shard0/main.onnx"
    part.write_bytes(part.read_bytes() + b"\0")
    refused = call("run", copied, "--random")
    assert refused.exit_code == 2 and "stage1.shard0/main.onnx" in refused.stderr
    recorded(copied)
    refused = call("run", copied, "--random", "--executor", "processes")
    assert refused.exit_code == 2 and "the plan says" in refused.stderr
    (copied / PLAN).write_text((copied / PLAN).read_text().replace('"dp": 2', '"dp": 3'))
    recorded(copied)
    refused = call("run", copied, "--random")
    assert refused.exit_code == 2 and "edited or damaged" in refused.stderr


def test_another_version_is_refused_by_name(parts: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_runner, "own_version", lambda: "9.9.9")
    refused = call("run", parts, "--random")
    assert refused.exit_code == 2 and "this worker is 9.9.9" in refused.stderr
