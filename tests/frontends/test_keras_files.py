"""``.keras`` files and models: what is loaded, and what is refused because it would run code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
from keras import layers
from miaotui.compiler.errors import CompileError, InputError, ModelError
from miaotui.compiler.ir.provenance import sources
from miaotui.compiler.options import CompileOptions, InputSpec
from miaotui.frontends.keras import import_keras
from miaotui.frontends.keras.files import read_keras
from support.keras_nets import cnn, randomize
from support.sessions import relative_error, run_program


def holds(imported, *cases):
    for case, (outputs, _) in zip(cases, run_program(imported.program, *cases), strict=True):
        wanted = imported.reference.run(case)
        assert outputs.keys() == wanted.keys()
        assert all(relative_error(outputs[name], wanted[name]) < 1e-5 for name in wanted)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keras") / "cnn.keras"
    randomize(cnn()).save(path)
    return path


def test_file_equals_the_model_it_holds(saved):
    imported = import_keras(saved, CompileOptions())
    image = np.random.default_rng(0).random((3, 32, 32, 3), dtype=np.float32)
    holds(imported, {"image": image}, {"image": image[:1]})
    wanted = keras.saving.load_model(saved)(image, training=False).detach().numpy()
    assert relative_error(imported.reference.run({"image": image})["output"], wanted) < 1e-6
    assert imported.program.source["model"] == "cnn"


def test_sources_and_layers_are_keras_layers(saved):
    imported = import_keras(saved, CompileOptions())
    named = {source.layer for node in imported.program.main.graph for source in sources(node)}
    assert {"conv0", "norm0", "head"} <= named
    assert {"conv0", "norm0", "pool1", "head"} <= imported.program.layers.keys()


def test_weights_have_the_names_of_variables(saved):
    imported = import_keras(saved, CompileOptions())
    assert any(name.startswith("head/kernel") for name in imported.program.main.graph.initializers)


def test_several_inputs_keep_their_structure():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model({"a": a, "b": b}, {"sum": a + b, "wide": layers.Dense(3)(a)})
    values = {name: np.ones((2, 4), np.float32) for name in ("a", "b")}
    imported = import_keras(model, CompileOptions(), values)
    assert imported.program.call.parameters == {"inputs": {"dict": {"a": "a", "b": "b"}}}
    assert imported.program.call.result == {"dict": {"sum": "sum", "wide": "wide"}}
    assert set(imported.examples) == {"a", "b"}
    holds(imported, values)
    with pytest.raises(InputError, match="'b' is missing"):
        import_keras(model, CompileOptions(), {"a": values["a"]})


class Block(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            layers.Dense(8, activation="relu", name="first"),
            layers.Dense(2, name="second"),
        )

    def call(self, x):
        return self.second(self.first(x) + self.first(-x))


def test_subclassed_model_needs_an_example_or_a_shape():
    with pytest.raises(InputError, match="subclassed"):
        import_keras(Block(), CompileOptions())
    x = np.random.default_rng(0).random((2, 5), dtype=np.float32)
    imported = import_keras(Block(), CompileOptions(), x)
    assert {"first", "first@1", "second"} <= imported.program.layers.keys()
    holds(imported, {"x": x}, {"x": x[:1]})
    spec = CompileOptions(inputs=(InputSpec.parse("x:[batch,5]"),))
    assert str(import_keras(Block(), spec).program.inputs()[0]) == "x: float32[batch, 5]"


def refused(path: Path) -> CompileError:
    with pytest.raises(ModelError) as error:
        read_keras(path)
    assert "Traceback" not in str(error.value)
    return error.value


def test_lambda_layers_are_refused_by_name(tmp_path):
    x = keras.Input((4,))
    y = layers.Lambda(lambda t: t * 2, name="double")(x)
    y = layers.Lambda(lambda t: t + 1, name="plus")(y)
    keras.Model(x, y).save(tmp_path / "model.keras")
    error = refused(tmp_path / "model.keras")
    assert "'double'" in str(error) and "'plus'" in str(error)


def test_missing_custom_objects_are_listed(tmp_path):
    class Odd(layers.Layer):
        def call(self, x):
            return x

    x = keras.Input((4,))
    keras.Model(x, layers.Dense(2, activation=keras.ops.sin)(Odd(name="odd")(x))).save(
        tmp_path / "model.keras"
    )
    error = refused(tmp_path / "model.keras")
    assert "Odd" in str(error) and "'odd'" in str(error)


def rewrite(saved: Path, path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name not in entries:
                new.writestr(name, old.read(name))
        for name, data in entries.items():
            new.writestr(name, data)
    return path


def test_foreign_modules_in_the_configuration_are_refused(saved, tmp_path):
    config = (
        b'{"module": "os", "class_name": "system", "config": {"command": "true"}, "registered_name": null}'
    )
    error = refused(rewrite(saved, tmp_path / "evil.keras", {"config.json": config}))
    assert "os.system" in str(error)


@pytest.mark.parametrize("entry", ["../outside", "/etc/outside", "assets\\..\\outside"])
def test_entries_outside_the_archive_are_refused(saved, tmp_path, entry):
    assert "outside" in str(refused(rewrite(saved, tmp_path / "model.keras", {entry: b"x"})))


def test_zip_bomb_is_refused_before_it_is_unpacked(saved, tmp_path):
    assert "unpacks" in str(
        refused(rewrite(saved, tmp_path / "bomb.keras", {"assets/zeros": bytes(60_000_000)}))
    )


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_file_is_a_model_error(saved, tmp_path, size):
    path = tmp_path / "cut.keras"
    path.write_bytes(saved.read_bytes()[:size])
    assert "is empty" in str(refused(path)) or "damaged" in str(refused(path))


def test_other_files_and_broken_configurations_are_model_errors(saved, tmp_path):
    (tmp_path / "h5.keras").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "HDF5" in str(refused(tmp_path / "h5.keras"))
    (tmp_path / "text.keras").write_text("hello")
    assert "no .keras archive" in str(refused(tmp_path / "text.keras"))
    assert "does not parse" in str(refused(rewrite(saved, tmp_path / "j.keras", {"config.json": b"{"})))
    assert "can't load" in str(refused(rewrite(saved, tmp_path / "w.keras", {"model.weights.h5": b"junk"})))


def test_another_backend_is_named_with_the_fix(saved, tmp_path):
    script = (
        "import sys, types\n"
        "keras = types.ModuleType('keras'); keras.config = types.SimpleNamespace(backend=lambda: 'jax')\n"
        "sys.modules['keras'] = keras\n"
        "from miaotui.compiler.errors import ToolError\n"
        "from miaotui.frontends.keras.backend import require_keras\n"
        "try:\n    require_keras()\nexcept ToolError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "jax" in done.stdout and "KERAS_BACKEND=torch" in done.stdout


def test_reading_leaves_no_files_behind(saved, tmp_path):
    copy = Path(shutil.copy(saved, tmp_path))
    read_keras(copy)
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]
