"""Executable: opened, run, called, timed, verified, saved; from several threads and processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.compiler.artifact import check
from miaotui.compiler.errors import ArtifactError, CompileError, InputError, OptionError
from miaotui.compiler.reference import Array, Arrays
from miaotui.runtime.executable import Executable, open_executable
from support.folders import mlp, run_mlp, write_folder

X = np.random.default_rng(3).standard_normal((4, 32)).astype(np.float32)


class Numpy:
    """The MLP's reference; ``off`` is added to layer ``at`` and all after it."""

    name = "numpy"

    def __init__(self, at: str = "", off: float = 0.0) -> None:
        self._at, self._off = at, off

    def run(self, inputs: Mapping[str, Array]) -> Arrays:
        values = self._values(inputs)
        return {"y": values["y"]}

    def layers(self, inputs: Mapping[str, Array]) -> Arrays:
        values = self._values(inputs)
        return {"net.0": values["h0"], "net.1": values["y"], "net.9": values["y"]}

    def _values(self, inputs: Mapping[str, Array]) -> Arrays:
        values = run_mlp(mlp(), inputs["x"])
        later = False
        for name in values:
            later = later or name == self._at
            values[name] = values[name] + self._off * later
        return values


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "m.miaotui")
    return tmp_path / "m.miaotui"


@pytest.fixture
def executable(folder: Path) -> Iterator[Executable]:
    with open_executable(folder) as opened:
        yield opened


def test_run_and_call_give_numpys_result(executable: Executable) -> None:
    expected = run_mlp(mlp(), X)["y"]
    np.testing.assert_allclose(executable.run({"x": X})["y"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(executable(X), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(executable(x=X), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(executable.run({"x": X}, "source")["y"], expected, rtol=1e-5, atol=1e-5)


def test_it_shows_its_signature_and_report(executable: Executable) -> None:
    assert [str(s) for s in executable.inputs] == ["x: float32[batch, 32]"]
    assert [str(s) for s in executable.outputs] == ["y: float32[batch, 32]"]
    assert "x: float32[batch, 32]" in repr(executable)
    assert executable.report == {"stages": []}


def test_verify_against_golden_data(executable: Executable) -> None:
    found = executable.verify()
    assert found.ok and found.reference == "golden outputs of onnx"
    assert found.error <= 1e-5 and found.tolerance == 1e-4
    certificate = found.certificate()
    assert certificate.ok and certificate.outputs == {"y": found.error} and certificate.variant == "cpu-ort"


def test_verify_names_the_first_layer_in_excess(executable: Executable) -> None:
    good = executable.verify(Numpy())
    assert good.ok and good.first_excess is None
    assert [(row.layer, row.value) for row in good.layers] == [("net.0", "h0"), ("net.1", "y")]
    bad = executable.verify(Numpy("h0", 0.5), {"x": X})
    assert not bad.ok and bad.first_excess is not None and bad.first_excess.layer == "net.0"
    late = executable.verify(Numpy("y", 0.5))
    assert late.first_excess is not None and late.first_excess.layer == "net.1"
    assert executable.verify(Numpy("y", 0.5), tolerance=1.0).ok
    assert executable.verify(Numpy("h0", 0.5), layers=False).layers == ()


def test_verification_is_plain_json(executable: Executable) -> None:
    data = json.loads(json.dumps(executable.verify(Numpy("h0", float("nan"))).to_json(), allow_nan=False))
    assert data["ok"] is False and data["outputs"][0]["ok"] is False and len(data["layers"]) == 2


def test_verify_without_a_reference_says_what_to_give(executable: Executable, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="give the source model"):
        executable.verify(inputs={"x": X})
    write_folder(tmp_path / "bare", golden=False)
    with open_executable(tmp_path / "bare") as bare:
        with pytest.raises(ArtifactError, match="give the source model"):
            bare.verify()
        assert bare.verify(Numpy()).ok, "inputs are made up"


def test_verify_takes_what_the_driver_can_resolve(folder: Path) -> None:
    seen: list[object] = []

    def resolve(source: object) -> Numpy:
        seen.append(source)
        return Numpy()

    with open_executable(folder, resolve) as opened:
        assert opened.verify("model.onnx").ok
    assert seen == ["model.onnx"]
    with open_executable(folder) as opened, pytest.raises(OptionError, match="no Reference"):
        opened.verify("model.onnx")


def test_bench_times_against_the_source_variant(executable: Executable) -> None:
    found = executable.bench(runs=10, threads=1)
    assert [c.name for c in found.candidates] == ["cpu-ort", "source"]
    assert found.speedup is not None and found.candidates[1].speedup is None
    assert found.latency.runs >= 10 and found.latency.median > 0
    assert all(c.load > 0 and c.first_call > 0 for c in found.candidates)
    assert found.inputs == {"x": (2, 32)} and found.together
    assert found.conditions.threads == 1 and found.conditions.cpu and found.conditions.versions["onnxruntime"]
    assert found.peak_rss > 1 << 20
    json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("together", [True, False])
def test_bench_takes_sizes_and_opponents(executable: Executable, tmp_path: Path, together: bool) -> None:
    write_folder(tmp_path / "other")
    with open_executable(tmp_path / "other") as other:
        opponents = (other, str(tmp_path / "other"), tmp_path / "other", "source")
        for against in opponents if together else opponents[-2:]:
            found = executable.bench(against, runs=6, threads=1, sizes={"batch": 3}, together=together)
            assert found.inputs == {"x": (3, 32)} and len(found.candidates) == 2
            assert found.together is together
        other.run({"x": X})  # an Executable that was given stays open


def test_bench_against_itself_measures_the_noise(executable: Executable) -> None:
    found = executable.bench(executable, runs=6, threads=1)
    assert [c.name for c in found.candidates] == ["cpu-ort", "cpu-ort (again)"]
    assert found.speedup is not None and 0 < found.speedup.low <= found.speedup.ratio <= found.speedup.high


def test_bench_with_several_threads_settles_between_candidates(executable: Executable) -> None:
    found = executable.bench(runs=5, threads=2, seconds=2)
    assert found.speedup is not None


@pytest.mark.parametrize(
    "arguments",
    [{"sizes": {"length": 3}}, {"sizes": {"batch": 99}}, {"inputs": {"x": X[:, :3]}}, {"inputs": {"z": X}}],
)
def test_bench_refuses_inputs_that_do_not_fit(executable: Executable, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        executable.bench(runs=5, threads=1, **arguments)


def test_bench_refuses_an_opponent_that_does_not_exist(executable: Executable) -> None:
    with pytest.raises(ArtifactError, match="no variant 'sorce'"):
        executable.bench("sorce", runs=5)
    with pytest.raises(OptionError):
        executable.bench(runs=5, sizes={"batch": 2}, inputs={"x": X})


def test_save_writes_the_same_executable(executable: Executable, tmp_path: Path) -> None:
    executable.save(tmp_path / "saved")
    assert check(tmp_path / "saved") == executable.manifest
    with open_executable(tmp_path / "saved") as saved:
        np.testing.assert_array_equal(saved(X), executable(X))


def test_temporary_folder_goes_with_the_executable(folder: Path) -> None:
    with open_executable(folder, temporary=True) as opened:
        opened.save(folder.parent / "kept")
    assert not folder.exists()
    check(folder.parent / "kept")
    opened = open_executable(folder.parent / "kept", temporary=True)
    del opened
    assert not (folder.parent / "kept").exists()


@pytest.mark.parametrize("whole", [True, False])
def test_save_names_the_folder_that_has_vanished_not_the_disk(folder: Path, whole: bool) -> None:
    target = folder.parent / "kept"
    with open_executable(folder) as opened:
        if whole:
            shutil.rmtree(folder)
        else:
            (folder / "report.json").unlink()
        fact = f"{folder.name}: {'' if whole else 'report.json '}was removed since it was opened; compile"
        with pytest.raises(ArtifactError, match=fact) as failure:
            opened.save(target)
    assert "space" not in str(failure.value) and str(target) not in str(failure.value)
    assert not target.exists() and not list(folder.parent.glob(".kept*"))


def test_closed_executable_says_so(folder: Path) -> None:
    opened = open_executable(folder)
    opened.close()
    opened.close()
    with pytest.raises(CompileError, match="was closed"):
        opened.run({"x": X})


def test_threads_open_one_session_together(executable: Executable) -> None:
    expected = run_mlp(mlp(), X)["y"]
    results: list[bool] = []

    def work() -> None:
        results.append(bool(np.allclose(executable(X), expected, atol=1e-4)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8 and len(executable._runners) == 1


OPEN = """
import sys, numpy as np
from miaotui.runtime.executable import open_executable
with open_executable(sys.argv[1]) as exe:
    print(exe.verify().ok)
"""


def test_processes_may_open_one_folder(folder: Path) -> None:
    both = [
        subprocess.Popen([sys.executable, "-c", OPEN, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0].strip() for process in both] == ["True", "True"]


LEAN = """
import sys
sys.modules["torch"] = None  # importing it would fail
from miaotui.runtime.executable import open_executable
print(open_executable(sys.argv[1]).verify().ok)
heavy = {"transformers", "keras", "onnxscript", "onnx"} & sys.modules.keys()
assert not heavy - {"onnx"}, heavy
"""


def test_running_needs_no_framework(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEAN, str(folder)], capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


BIG = """
import sys
from pathlib import Path
import numpy as np, onnx_ir as ir
from onnx import helper
from support.folders import manifest_of, program
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.draft import Draft
from miaotui.compiler.manifest import Variant
from miaotui.compiler.options import Target
from miaotui.runtime.conditions import peak_rss
from miaotui.runtime.executable import open_executable
folder, count, width = Path(sys.argv[1]), 24, 2048
size = width * width * 4
nodes, x = [], "x"
for i in range(count):
    out = "y" if i == count - 1 else f"h{i}"
    nodes.append(helper.make_node("MatMul", [x, f"w{i}"], [out])); x = out
graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, ["n", width])],
                          [helper.make_tensor_value_info("y", 1, ["n", width])])
made = program(graph)
for node in made.main.graph:
    value = node.inputs[1]
    index = int(value.name[1:])
    value.const_value = ir.ExternalTensor("w.bin", index * size, size, ir.DataType.FLOAT,
        shape=ir.Shape((width, width)), name=value.name, base_dir=folder)
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((width, width))
    made.main.graph.initializers.add(value)
def peak(): return peak_rss() >> 20
start = peak()
with Draft(folder / "m") as draft:
    variants = {}
    for role in ("source", "optimized"):
        build = OnnxRuntimeBackend().build(made, Target(), draft.variant(role), draft.weights)
        variants[role] = Variant(role, "cpu", "ort", {"main": f"variants/{role}/main.onnx"}, build.settings)
    draft.finish(manifest_of(made, variants))
written = peak()
weights = (folder / "m/weights/weights.bin").stat().st_size >> 20
with open_executable(folder / "m") as exe:
    exe.run({"x": np.ones((1, width), np.float32)})
opened = peak()
exe = open_executable(folder / "m")
exe.bench(runs=6, threads=1, together=False, inputs={"x": np.ones((1, width), np.float32)})
print(start, written, opened, peak(), weights)
"""


@pytest.mark.slow
def test_memory_of_writing_and_opening_400_megabytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "w.bin").open("wb") as file:
        for _ in range(24):
            file.write((rng.standard_normal((2048, 2048), np.float32) / 64).tobytes())
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(tests)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    start, written, opened, benched, weights = map(int, done.stdout.split())
    assert weights == 384, "two variants, stored once"
    assert written - start < 50
    assert opened - start < 1.15 * weights + 100, "one packed copy; mapped pages are given back"
    assert benched - start < 1.15 * weights + 150, "one session at a time"
