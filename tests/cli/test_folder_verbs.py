"""``run``, ``bench``, ``verify`` and ``inspect`` on a compiled folder."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from support.command_line import Call

INSPECT_KEYS = [
    "schema", "kind", "name", "created", "source", "entries", "dims", "decoding", "default", "variants",
    "sizes", "partition", "ops", "passes", "certificate", "environment", "options", "checked",
]  # fmt: skip


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    x = np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    return tmp_path / "x.npz"


@pytest.fixture
def wrong_folder(folder: Path, tmp_path: Path) -> Path:
    """A folder whose optimized variant has another weight than its source: intact files, wrong result."""
    from miaotui.compiler.draft import Draft
    from miaotui.compiler.manifest import Manifest

    place = tmp_path / "wrong.miaotui"
    shutil.copytree(folder, place)
    manifest = Manifest.loads((folder / "manifest.json").read_text(), "manifest.json")
    file = folder / manifest.variants[manifest.default].entries["main"]
    model = onnx.load(file)
    weights = {t.name: t for t in model.graph.initializer}
    v = weights["v"]
    v.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(v) * 2, "v"))
    with Draft(place) as draft:
        for name, variant in manifest.variants.items():
            source = folder / variant.entries["main"]
            target = draft.variant(name) / source.name
            target.write_bytes(model.SerializeToString() if name == manifest.default else source.read_bytes())
        golden = np.load(folder / "golden" / "main.npz")
        draft.golden(
            {k[7:]: golden[k] for k in golden.files if k.startswith("inputs/")},
            {k[8:]: golden[k] for k in golden.files if k.startswith("outputs/")},
        )
        draft.finish(manifest)
    return place


def test_run_computes_what_onnxruntime_computes(
    call: Call, folder: Path, inputs: Path, tmp_path: Path
) -> None:
    result = call("run", folder, "--input", inputs, "-o", tmp_path / "out.bin")
    assert result.exit_code == 0, result.stderr
    x = np.load(inputs)["x"]
    [expected] = onnxruntime.InferenceSession(folder.parent / "tiny.onnx").run(None, {"x": x})
    np.testing.assert_allclose(np.load(tmp_path / "out.bin")["y"], expected, rtol=1e-5, atol=1e-5)


def test_run_summarizes_outputs(call: Call, folder: Path) -> None:
    result = call("run", folder, "--random", "--size", "batch=5", "--format", "json")
    [summary] = json.loads(result.stdout)["outputs"]
    assert list(summary) == ["name", "dtype", "shape", "min", "mean", "max"]
    assert (summary["name"], summary["dtype"], summary["shape"]) == ("y", "float32", [5, 4])
    assert "5×4" in call("run", folder, "--random", "--size", "batch=5").stdout


def test_run_takes_the_source_variant(call: Call, folder: Path, inputs: Path) -> None:
    told = [call("run", folder, "-i", inputs, "--variant", v).stdout for v in ("source", "cpu-ort")]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "arguments",
    [(), ("--random", "--input", "x.npz"), ("--input", "no.npz"), ("--random", "--size", "batch"),
     ("--random", "--size", "length=2"), ("--random", "--variant", "gpu")],
)  # fmt: skip
def test_run_without_usable_inputs_exits_2(call: Call, folder: Path, arguments: tuple[str, ...]) -> None:
    result = call("run", folder, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")


def test_run_names_every_input_that_does_not_fit(call: Call, folder: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "bad.npz", x=np.ones((3, 9), np.float32), z=np.ones(1))
    result = call("run", folder, "--input", tmp_path / "bad.npz")
    assert result.exit_code == 2
    assert "'x'" in result.stderr
    assert "'z'" in result.stderr


@pytest.mark.parametrize("verb", ["run", "bench", "verify"])
def test_folder_that_is_none_exits_2(call: Call, verb: str, tmp_path: Path) -> None:
    arguments = ("--random",) if verb == "run" else ()
    result = call(verb, tmp_path, *arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr


def test_bench_against_the_source(call: Call, folder: Path) -> None:
    result = call("bench", folder, "--runs", "10", "-t", "1", "--format", "json", "-q")
    data = json.loads(result.stdout)
    assert [c["name"] for c in data["candidates"]] == ["cpu-ort", "source"]
    assert set(data) == {"schema", "candidates", "inputs", "conditions", "together", "peak_rss"}
    assert {"ratio", "low", "high", "verdict"} == set(data["candidates"][0]["speedup"])
    assert {"median", "p90", "p99", "mean", "runs"} <= set(data["candidates"][0]["latency"])
    assert data["conditions"]["threads"] == 1


def test_bench_against_another_folder_and_in_other_sizes(call: Call, folder: Path) -> None:
    result = call("bench", folder, "--against", folder, "--runs", "6", "-t", "1", "--size", "batch=7")
    assert result.exit_code == 0, result.stderr
    assert "tiny.miaotui (cpu-ort)" in result.stdout
    assert "x 7×8" in result.stdout
    assert "CI95" in result.stdout
    assert "bench" in result.stderr


def test_verify_agrees_with_golden_data_and_with_the_model(call: Call, folder: Path) -> None:
    assert call("verify", folder, "-q").exit_code == 0
    result = call("verify", folder, "--reference", folder.parent / "tiny.onnx", "--format", "json", "-q")
    data = json.loads(result.stdout)
    assert result.exit_code == 0
    assert data["ok"]
    assert data["layers"]
    assert data["culprit"] is None
    assert {"schema", "reference", "variant", "tolerance", "outputs", "layers", "ok"} <= set(data)


def test_verify_exits_1_when_outputs_differ(call: Call, wrong_folder: Path) -> None:
    result = call("verify", wrong_folder, "-q", "--no-bisect")
    assert result.exit_code == 1
    assert "DIFFERS" in result.stdout
    assert "FAILS" in result.stdout


def test_verify_with_another_model_as_reference_exits_2(call: Call, folder: Path, tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[2] other) => (float[2] y) { y = Relu(other) }'
    ), tmp_path / "other.onnx")  # fmt: skip
    result = call("verify", folder, "--reference", tmp_path / "other.onnx", "-q")
    assert result.exit_code == 2
    assert "other" in result.stderr


def test_damaged_weights_are_found_by_check(call: Call, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "damaged.miaotui"
    shutil.copytree(folder, place)
    file = place / "variants" / "cpu-ort"
    model = next(file.glob("*.onnx"))
    data = bytearray(model.read_bytes())
    data[-20] ^= 1
    model.write_bytes(data)
    assert call("inspect", folder, "--check").exit_code == 0
    result = call("inspect", place, "--check")
    assert result.exit_code == 2
    assert model.name in result.stderr


def test_inspect_has_the_same_keys_for_a_folder_and_a_model(call: Call, folder: Path) -> None:
    compiled = json.loads(call("inspect", folder, "--format", "json").stdout)
    model = json.loads(call("inspect", folder.parent / "tiny.onnx", "--format", "json").stdout)
    assert list(compiled) == list(model) == INSPECT_KEYS
    assert (compiled["kind"], model["kind"]) == ("executable", "model")
    assert compiled["entries"] == model["entries"]
    assert compiled["ops"]["before"] == model["ops"]["before"]
    assert compiled["certificate"]["ok"]


def test_inspect_tells_signature_variants_and_sizes(call: Call, folder: Path) -> None:
    table = call("inspect", folder).stdout
    for told in ("x: float32[batch, 8]", "y: float32[batch, 4]", "cpu-ort*", "source", "MatMul", "tolerance"):
        assert told in table, told


def test_inspect_node_tells_sources_and_passes(call: Call, folder: Path) -> None:
    result = call("inspect", folder, "--node", "y", "--format", "json")
    node = json.loads(result.stdout)["node"]
    assert list(node) == ["name", "operator", "inputs", "outputs", "sources", "passes"]
    assert any(source["layer"] == "fc2" for source in node["sources"])
    assert "fc2" in call("inspect", folder, "--node", "y").stdout


def test_inspect_finds_the_node_of_a_source_layer(call: Call, folder: Path) -> None:
    by_layer, by_value = (call("inspect", folder, "--node", name).stdout for name in ("fc2", "y"))
    assert by_layer == by_value


def test_inspect_unknown_node_offers_near_ones(call: Call, folder: Path) -> None:
    result = call("inspect", folder, "--node", "yy")
    assert result.exit_code == 2
    assert "try" in result.stderr


def test_inspect_prints_the_graph(call: Call, folder: Path) -> None:
    text = call("inspect", folder, "--ir").stdout
    assert "MatMul" in text
    assert "%y" in text


def test_inspect_draws_every_operator_of_the_variant(call: Call, folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "graph.svg"
    assert call("inspect", folder, "--picture", picture).exit_code == 0
    operators = json.loads(call("inspect", folder, "--format", "json").stdout)["ops"]["after"]
    root = ET.parse(picture).getroot()
    drawn = [g for g in root.iter("{http://www.w3.org/2000/svg}g") if g.get("class") == "op"]
    assert len(drawn) == sum(operators.values())


def test_inspect_draws_a_module(call: Call, folder: Path, tmp_path: Path) -> None:
    result = call(
        "inspect", folder, "--picture", tmp_path / "g.svg", "--module", "fc2", "--variant", "source"
    )
    assert result.exit_code == 0
    assert call("inspect", folder, "--picture", tmp_path / "h.svg", "--module", "nowhere").exit_code == 2
    assert not (tmp_path / "h.svg").exists()


@pytest.mark.parametrize("flag", [("--check",), ("--variant", "source"), ("--entry", "decode")])
def test_inspect_of_a_model_refuses_what_only_a_folder_has(
    call: Call, model: Path, flag: tuple[str, ...]
) -> None:
    assert call("inspect", model, *flag).exit_code == 2
