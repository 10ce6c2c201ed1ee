"""``load`` dispatches by the kind of source, and says what it saw when there is no frontend for it."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from miaotui.compiler.errors import InputError, ModelError
from miaotui.compiler.program import TensorSpec
from miaotui.frontends.load import load, reference_of
from onnx import TensorProto, helper
from support.sessions import run_program
from torch import nn


class Evil:
    def __reduce__(self):
        return (Path("evil-ran").touch, ())


def model_proto():
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])
    w = helper.make_tensor("w", TensorProto.FLOAT, [3], [1.0, 2.0, 3.0])
    graph = helper.make_graph(nodes, "g", [x], [y], [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize("make", [model_proto, lambda: ir.from_proto(model_proto())], ids=["proto", "ir"])
def test_onnx_in_memory(make):
    x = np.ones((2, 3), np.float32)
    imported = load(make(), inputs=x)
    assert imported.examples is not None and list(imported.examples) == ["x"]
    ((outputs, _),) = run_program(imported.program, {"x": x})
    assert np.array_equal(outputs["y"], imported.reference.run({"x": x})["y"])
    assert np.array_equal(outputs["y"][0], [2, 3, 4])


def test_wrong_example_names_are_named():
    with pytest.raises(InputError, match="the model takes x"):
        load(model_proto(), inputs={"z": np.ones((2, 3))})


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(nn.Linear(4, 2), (torch.ones(2, 4),), strict=False), path)
    return path


def test_pt2_file(exported):
    imported = load(exported)
    assert [str(spec) for spec in imported.program.inputs()] == ["input: float32[2, 4]"]
    assert imported.program.source["path"] == str(exported)
    x = np.ones((2, 4), np.float32)
    ((outputs, _),) = run_program(imported.program, {"input": x})
    assert np.allclose(outputs["output"], imported.reference.run({"input": x})["output"], atol=1e-6)


def rewrite(source: Path, path: Path, change) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return path


def pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("sample_inputs", lambda data: pickled((Evil(),)), "run code"),
        (
            "weights_config",
            lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true'),
            "pickle",
        ),
        (
            "/models/",
            lambda data: data.replace(b"torch.ops.aten.linear.default", b"torch.hub.load"),
            "torch.hub",
        ),
        ("weight_0", lambda data: data[:-4], "torch.export.load fails"),
    ],
)
def test_pt2_that_could_run_code_or_is_damaged_is_refused(
    exported, tmp_path, monkeypatch, part, change, words
):
    monkeypatch.chdir(tmp_path)
    path = rewrite(exported, tmp_path / "bad.pt2", lambda name, data: change(data) if part in name else data)
    with pytest.raises(ModelError, match=words):
        load(path)
    assert not Path("evil-ran").exists()


@pytest.mark.parametrize(("size", "words"), [(0, "empty"), (3000, "damaged")])
def test_truncated_pt2_is_a_model_error(exported, tmp_path, size, words):
    path = tmp_path / "cut.pt2"
    path.write_bytes(exported.read_bytes()[:size])
    with pytest.raises(ModelError, match=words):
        load(path)


def test_pickles_and_torchscript_are_refused_unread(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "module.pt")
    torch.save(nn.Linear(2, 2).state_dict(), "weights.pth")
    torch.save(Evil(), "old.bin", _use_new_zipfile_serialization=False)
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "script.pt")
    for name, words in (
        ("module.pt", "run code"),
        ("weights.pth", "pickle"),
        ("old.bin", "pickle"),
        ("script.pt", "TorchScript"),
    ):
        with pytest.raises(ModelError, match=words) as error:
            load(name)
        assert "torch.export.save" in str(error.value)
    assert not Path("evil-ran").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.gguf", "GGUF"), ("m.h5", "HDF5"), ("m.tflite", "TensorFlow Lite"), ("m.safetensors", "no model"),
        ("m.xyz", "unknown kind"), ("m", "unknown kind"), ("missing.onnx", "does not exist"),
    ],
)  # fmt: skip
def test_files_without_a_frontend_say_what_they_are(tmp_path, name, words):
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=words) as error:
        load(tmp_path / name)
    assert error.value.problems[0].fix


def test_folders_without_a_frontend_say_what_they_are(tmp_path):
    with pytest.raises(ModelError, match="no Hugging Face folder"):
        load(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(ModelError, match="SavedModel"):
        load(tmp_path)


@pytest.mark.parametrize("source", [3, object(), [1], {"a": 1}, None, len])
def test_objects_without_a_frontend_are_refused_by_type(source):
    with pytest.raises(ModelError, match=r"is a builtins\.") as error:
        load(source)
    assert ".onnx" in str(error.value)


def test_reference_of_a_file_checks_its_inputs(exported):
    spec = TensorSpec("input", ir.DataType.FLOAT, (2, 4))
    assert reference_of(exported, [spec], []).name.startswith("torch")
    with pytest.raises(InputError, match="takes input"):
        reference_of(exported, [TensorSpec("z", ir.DataType.FLOAT, (2, 4))], [])
