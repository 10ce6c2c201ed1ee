"""``miaotui plan``: tables, JSON, pictures, models of every kind, refusals."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Call
from support.planning import LLAMA_70B


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    folder = tmp_path / "llama-70b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**LLAMA_70B, "torch_dtype": "bfloat16"}))
    return folder


def planned(call: Call, *arguments: object) -> dict[str, Any]:
    done = call("plan", *arguments, "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_table_ranks_meshes(call: Call, llama: Path) -> None:
    done = call("plan", llama, "--devices", "8xh100", "--price", "2.5")
    assert done.exit_code == 0
    assert "70.6 B parameters, 80 layers" in done.stdout
    assert "8 × NVIDIA H100 SXM 80 GB" in done.stdout
    lines = done.stdout.splitlines()
    top = lines.index(next(line for line in lines if line.startswith("mesh"))) + 1
    assert lines[top].startswith("dp 2 · pp 2 · tp 2")
    assert "$ per 1M" in lines[top - 1]
    assert "simulated" in done.stdout


def test_json_holds_every_prediction(call: Call, llama: Path) -> None:
    found = planned(call, llama, "--devices", "8xh100", "--goal", "latency", "--precision", "fp8")
    assert (found["schema"], found["precision"], found["load"]["concurrency"]) == (1, "fp8", 1)
    best = found["plans"][0]
    assert (best["dp"], best["pp"], best["tp"]) == (1, 1, 8)
    assert best["latency_seconds"] == min(entry["latency_seconds"] for entry in found["plans"])
    for share in ("utilisation", "bubble", "communication"):
        assert 0 <= best[share] <= 1
    assert best["dollars_per_million"] is None
    assert found["simulated"]["rate"] == pytest.approx(best["rate"], rel=0.05)


def test_what_is_simulated_is_what_was_chosen(call: Call, llama: Path) -> None:
    found = planned(call, llama, "--devices", "8xh100", "--max-tpot", "40", "--precision", "fp8")
    assert found["plans"][0]["tpot_seconds"] <= 0.04
    assert found["simulated"]["tpot_seconds"]["p50"] <= 0.04
    assert found["simulated"]["rate"] == pytest.approx(found["plans"][0]["rate"], rel=0.1)


def test_cost_is_of_the_tokens_that_are_written(call: Call, llama: Path) -> None:
    best = planned(call, llama / "config.json", "--devices", "8xh100", "--goal", "cost", "--price", "3.6")[
        "plans"
    ][0]
    assert best["dollars_per_million"] == pytest.approx(best["devices"] * 1000 / best["rate"])


def test_a_picture_is_written(call: Call, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "stages.svg"
    assert call("plan", llama, "--devices", "8xh100", "--pp", "4", "--gantt", path).exit_code == 0
    assert b"stage 3" in path.read_bytes() or path.stat().st_size > 10_000


def test_a_device_of_ones_own(call: Call, llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nmemory_gib = 200\nbandwidth_gb = 5000\nprice_hour = 1.5\n[tflops]\nfp32 = 50\n'
        "fp16 = 1000\n[link]\nbandwidth_gb = 500\n[network]\nbandwidth_gb = 50\n"
    )
    found = planned(call, llama, "--devices", "2xmine", "--device-file", path, "--goal", "cost")
    assert found["devices"]["name"] == "mine"
    assert found["plans"][0]["dollars_per_million"] > 0


def test_an_encoder_answers_requests(call: Call, tmp_path: Path) -> None:
    config = {**LLAMA_70B, "num_hidden_layers": 2, "model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = planned(call, tmp_path, "--devices", "2xa100")
    assert (found["model"]["kind"], found["load"]["output"]) == ("encoder", 0)
    assert found["plans"][0]["tpot_seconds"] == 0
    assert found["simulated"]["rate"] == pytest.approx(found["plans"][0]["rate"], rel=0.05)


def test_any_other_model_takes_samples(call: Call, model: Path) -> None:
    found = planned(call, model, "--devices", "2xa100")
    assert (found["model"]["kind"], found["model"]["layers"]) == ("graph", 3)
    assert {entry["tp"] for entry in found["plans"]} == {1}


def test_without_simpy_the_forecast_stands_and_a_note_says_why(
    call: Call, llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    imported = importlib.import_module

    def without_simpy(name: str, package: str | None = None) -> Any:
        if name == "simpy":
            raise ModuleNotFoundError("No module named 'simpy'", name="simpy")
        return imported(name, package)

    monkeypatch.setattr(importlib, "import_module", without_simpy)
    done = call("plan", llama, "--devices", "8xh100")
    assert done.exit_code == 0
    assert "not simulated: simpy is not installed; pip install 'miaotui[plan]'" in done.stderr
    assert call("plan", llama, "--devices", "8xh100", "--gantt", tmp_path / "a.png").exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--devices", "8xh100", "--tp", "3"], "give 2 or 4"),
        (["--devices", "8xh100", "--tp", "16"], "takes 16"),
        (["--devices", "8xh100", "--pp", "81"], "give at most 80"),
        (["--devices", "1xrtx4090"], "give 6xrtx4090"),
        (["--devices", "3xabc"], "no device 'abc'"),
        (["--devices", "8xh100", "--goal", "speed"], "give one of latency, throughput, cost"),
        (["--devices", "8xh100", "--goal", "cost"], "needs a price"),
        (["--devices", "8xh100", "--precision", "int3"], "'int3' is unknown"),
        (["--devices", "8xh100", "--cache", "int3"], "'int3' is unknown"),
        (["--devices", "8xh100", "--max-tpot", "1"], "the best of 26 meshes takes"),
        (["--devices", "8xh100", "--gantt", "a.jpg"], "is no picture"),
        (["--devices", "8xh100", "--stack", "mine"], "give one of plain"),
    ],
)
def test_what_can_not_be_is_refused_with_what_can(
    call: Call, llama: Path, arguments: list[str], said: str
) -> None:
    done = call("plan", llama, *arguments)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_is_not_there_is_not_downloaded(call: Call) -> None:
    done = call("plan", "meta-llama/Llama-3.3-70B", "--devices", "8xh100")
    assert done.exit_code == 2
    assert "nothing is downloaded" in done.stderr


def test_an_executable_folder_is_sent_to_its_source(call: Call, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert "give the model it was compiled from" in call("plan", tmp_path, "--devices", "h100").stderr
