"""Bad model files: each is refused as the user's mistake, with place, fact and fix; none crashes or hangs."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from miaotui.compiler.errors import CompileError, InputError, ModelError, OptionError, UnsupportedError
from miaotui.compiler.options import CompileOptions, InputSpec
from miaotui.compiler.program import DimRange
from miaotui.frontends.onnx import import_onnx
from miaotui.passes.base import PassContext
from miaotui.passes.observers import Verify, run_pipeline
from miaotui.passes.pipeline import pipeline
from onnx import TensorProto, helper, numpy_helper
from support.mutate import CHANGES, SEEDS, damaged_bytes, damaged_model, mlp, other_tensor, with_external_data

node = helper.make_node


def info(name: str, shape: list[object] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: list[onnx.NodeProto],
    outputs: tuple[str, ...] = ("y",),
    constants: dict[str, np.ndarray] | None = None,
    opsets: dict[str, int] | None = None,
    shape: list[object] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", shape or [2, 3])],
        [info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def refused(path: Path, kind: type[CompileError] = ModelError, **options: object) -> str:
    with pytest.raises(kind) as caught:
        import_onnx(path, CompileOptions(**options))  # type: ignore[arg-type]
    assert type(caught.value) is kind
    assert all(problem.place and problem.fact and problem.fix for problem in caught.value.problems)
    return str(caught.value)


def refused_model(proto: onnx.ModelProto, folder: Path, kind: type[CompileError] = ModelError) -> str:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return refused(folder / "m.onnx", kind)


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "is empty"),
            (b"<!DOCTYPE html><html><body>404</body></html>", "is a web page"),
            (b"\n\n  <html>", "is a web page"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
            (pickle.dumps({"weight": [1.0] * 50}), "Python pickle"),
            (pickle.dumps([1], protocol=2), "Python pickle"),
            (b"GGUF\x03\x00\x00\x00", "GGUF file"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b'{"config": 1}', "JSON text"),
            (b"\x1f\x8b\x08\x00", "gzip"),
            (b"\x00" * 100, "zeros"),
            (b"hello world, this is no model", "is no ONNX model"),
            (b"\x08\x08", "truncated or damaged"),
            (mlp().SerializeToString()[:-40], "truncated or damaged"),
        ],
    )
    def test_says_what_the_file_seems_to_be(self, tmp_path: Path, content: bytes, said: str) -> None:
        (tmp_path / "m.onnx").write_bytes(content)
        assert said in refused(tmp_path / "m.onnx")

    def test_zip_archive(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "m.onnx", "w") as archive:
            archive.writestr("a", "b")
        assert "zip archive" in refused(tmp_path / "m.onnx")

    def test_missing_file_folder_and_impossible_path(self, tmp_path: Path) -> None:
        assert "does not exist" in refused(tmp_path / "none.onnx")
        assert "is a folder" in refused(tmp_path)
        assert "is no path" in refused(Path("a\0b.onnx"))

    def test_every_truncation_is_refused(self, tmp_path: Path) -> None:
        data = mlp().SerializeToString()
        for length in range(0, len(data) - 1, 7):
            (tmp_path / "m.onnx").write_bytes(data[:length])
            refused(tmp_path / "m.onnx")

    def test_deeply_nested_message_is_refused(self, tmp_path: Path) -> None:
        data = model([node("Relu", ["x"], ["y"])]).graph.SerializeToString()
        for _ in range(
            5000
        ):  # a node with a graph attribute with a node ..., written by hand: protobuf won't
            for field in (0x32, 0x2A, 0x0A):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
                data = bytes([field]) + _varint(len(data)) + data
        (tmp_path / "m.onnx").write_bytes(b"\x08\x08\x3a" + _varint(len(data)) + data)
        refused(tmp_path / "m.onnx")


def _varint(number: int) -> bytes:
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


class TestStructure:
    def test_all_dangling_values_are_listed(self, tmp_path: Path) -> None:
        text = refused_model(
            model([node("Add", ["x", "p"], ["h"]), node("Add", ["h", "q"], ["y"], name="n")]), tmp_path
        )
        assert "reads 'p', which nothing defines" in text
        assert "node 'n' (Add): reads 'q'" in text

    def test_cycle_is_named(self, tmp_path: Path) -> None:
        nodes = [
            node("Add", ["x", "b"], ["a"], name="p"),
            node("Relu", ["a"], ["b"], name="q"),
            node("Relu", ["a"], ["y"]),
        ]
        text = refused_model(model(nodes), tmp_path)
        assert "cyclic" in text and "p" in text and "q" in text

    def test_value_defined_twice(self, tmp_path: Path) -> None:
        text = refused_model(
            model([node("Relu", ["x"], ["y"], name="a"), node("Abs", ["x"], ["y"], name="b")]), tmp_path
        )
        assert "node 'b' (Abs): defines 'y', already defined by node 'a' (Relu)" in text

    def test_no_outputs_no_opset_and_future_opset(self, tmp_path: Path) -> None:
        assert "has no outputs" in refused_model(model([node("Relu", ["x"], ["y"])], ()), tmp_path)
        proto = model([node("Relu", ["x"], ["y"])])
        del proto.opset_import[:]
        assert "imports no opset" in refused_model(proto, tmp_path)
        assert "has version 999" in refused_model(
            model([node("Relu", ["x"], ["y"])], opsets={"": 999}), tmp_path
        )

    def test_undefined_output(self, tmp_path: Path) -> None:
        assert "output 'z': is defined by nothing" in refused_model(
            model([node("Relu", ["x"], ["y"])], ("y", "z")), tmp_path
        )

    def test_recursive_functions(self, tmp_path: Path) -> None:
        proto = model([node("F", ["x"], ["y"], domain="own")], opsets={"": 17, "own": 1})
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        proto.functions.append(
            helper.make_function("own", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="own")], imports)
        )
        assert "own::F" in refused_model(proto, tmp_path)

    def test_unsorted_nodes_are_no_mistake(self, tmp_path: Path) -> None:
        proto = model([node("Relu", ["h"], ["y"]), node("Abs", ["x"], ["h"])])
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert [n.op_type for n in import_onnx(tmp_path / "m.onnx").program.main.graph] == ["Abs", "Relu"]


class TestOperators:
    def test_all_unknown_operators_are_listed_with_counts_and_nodes(self, tmp_path: Path) -> None:
        nodes = [
            node("Foo", ["x"], ["a"], name="first", domain="mine"),
            node("Foo", ["a"], ["b"], name="second", domain="mine"),
            node("Bar", ["b"], ["y"], name="third"),
        ]
        text = refused_model(model(nodes, opsets={"": 17, "mine": 1}), tmp_path, UnsupportedError)
        assert "mine::Foo: is unknown to ONNX Runtime, used by 2 nodes ('first', 'second')" in text
        assert "Bar: is no operator of ai.onnx opset 17, used by 1 node ('third')" in text

    def test_operators_that_onnxruntime_knows_pass_as_opaque(self, tmp_path: Path) -> None:
        proto = model(
            [node("NGramRepeatBlock", ["i", "x"], ["y"], domain="com.microsoft", ngram_size=2)],
            constants={"i": np.zeros((2, 4), np.int64)},
            opsets={"": 17, "com.microsoft": 1},
        )
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert [n.op_type for n in import_onnx(tmp_path / "m.onnx").program.main.graph] == [
            "NGramRepeatBlock"
        ]

    def test_arity_attributes_and_types_against_the_signature(self, tmp_path: Path) -> None:
        assert "has 1 inputs, wants 2 to 3" in refused_model(model([node("Conv", ["x"], ["y"])]), tmp_path)
        text = refused_model(model([node("Softmax", ["x"], ["y"], axis=1.5)]), tmp_path)
        assert "attribute 'axis' is FLOAT, wants INT" in text
        text = refused_model(model([node("Add", ["x", "i"], ["y"])], constants={"i": np.arange(3)}), tmp_path)
        assert "tensor(int64)" in text

    def test_shapes_that_no_operator_can_take(self, tmp_path: Path) -> None:
        proto = model(
            [node("MatMul", ["x", "w"], ["y"], name="fc")], constants={"w": np.ones((4, 5), np.float32)}
        )
        assert "node 'fc' (MatMul)" in refused_model(proto, tmp_path)

    def test_wrong_recorded_shapes_of_outputs_are_overruled(self, tmp_path: Path) -> None:
        proto = model([node("Relu", ["x"], ["y"])], shape=["n", 3])
        proto.graph.output[0].CopyFrom(info("y", [1, 4]))
        (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
        assert str(import_onnx(tmp_path / "m.onnx").program.outputs()[0]) == "y: float32[n, 3]"

    def test_inputs_without_a_dtype_or_of_impossible_size(self, tmp_path: Path) -> None:
        proto = model([node("Relu", ["x"], ["y"])])
        proto.graph.input[0].ClearField("type")
        assert "input 'x': has no dtype" in refused_model(proto, tmp_path)
        proto = model([node("Relu", ["x"], ["y"])], shape=[2**40, 2**20])
        assert "input 'x': declares [1099511627776,1048576]" in refused_model(proto, tmp_path)


class TestTensors:
    @pytest.mark.parametrize("dims", [[10**12], [2**62, 4], [-3], [2**32, 2**32], [1], []])
    def test_declared_shape_that_the_data_does_not_have(self, tmp_path: Path, dims: list[int]) -> None:
        proto = model([node("Add", ["x", "w"], ["y"])], constants={"w": np.ones(3, np.float32)})
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(dims)
        start = time.process_time()
        assert "tensor 'w'" in refused_model(proto, tmp_path)
        assert time.process_time() - start < 2

    def test_unknown_dtype(self, tmp_path: Path) -> None:
        proto = model([node("Add", ["x", "w"], ["y"])], constants={"w": np.ones(3, np.float32)})
        proto.graph.initializer[0].data_type = 77
        assert "unknown dtype 77" in refused_model(proto, tmp_path)

    def test_sparse_indices_outside_the_shape(self, tmp_path: Path) -> None:
        values = numpy_helper.from_array(np.ones(1, np.float32), "w")
        proto = model([node("Add", ["x", "w"], ["y"])])
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([7])), [2, 3])
        proto.graph.sparse_initializer.append(sparse)
        assert "indices that do not fit" in refused_model(proto, tmp_path)
        proto.graph.sparse_initializer[0].dims[0] = 10**13
        assert "too large" in refused_model(proto, tmp_path)


class TestExternalData:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> onnx.ModelProto:
        return onnx.ModelProto.FromString(with_external_data(mlp(), tmp_path))

    @pytest.mark.parametrize(
        ("location", "said"),
        [
            ("../weights.bin", "outside the model's folder"),
            ("sub/../../weights.bin", "outside the model's folder"),
            ("..\\weights.bin", "outside the model's folder"),
            ("/etc/hostname", "outside the model's folder"),
            ("C:\\weights.bin", "outside the model's folder"),
            ("none.bin", "does not exist"),
            ("link.bin", "a link to"),
            ("folder", "which is no file"),
            ("", "no external location"),
            ("a\0b", "no external location"),
        ],
    )
    def test_refuses_what_lies_outside(
        self, tmp_path: Path, saved: onnx.ModelProto, location: str, said: str
    ) -> None:
        folder = tmp_path / "inner"
        (folder / "folder").mkdir(parents=True)
        (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
        for tensor in saved.graph.initializer:
            next(e for e in tensor.external_data if e.key == "location").value = location
        text = refused_model(saved, folder)
        assert said in text
        assert text.count(said) == len(saved.graph.initializer), "every tensor is listed"

    @pytest.mark.parametrize(
        ("key", "value", "said"),
        [
            ("offset", "-4", "needs bytes"),
            ("offset", "9999999", "needs bytes"),
            ("offset", "x", "no number"),
            ("length", "3", "its external length is 3"),
            ("length", "99999999999999", "its external length is"),
        ],
    )
    def test_refuses_places_outside_the_file(
        self, tmp_path: Path, saved: onnx.ModelProto, key: str, value: str, said: str
    ) -> None:
        for entry in saved.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value
        assert said in refused_model(saved, tmp_path)

    def test_refuses_a_data_file_that_is_too_short(self, tmp_path: Path, saved: onnx.ModelProto) -> None:
        data = (tmp_path / "weights.bin").read_bytes()
        (tmp_path / "weights.bin").write_bytes(data[:-8])
        assert "which has" in refused_model(saved, tmp_path)

    def test_reads_the_symlinks_of_a_hub_cache(self, tmp_path: Path, saved: onnx.ModelProto) -> None:
        snapshot = _hub_cache(tmp_path, saved)
        program = import_onnx(snapshot / "model.onnx").program
        want = {t.name: numpy_helper.to_array(t) for t in mlp().graph.initializer}
        for name, array in want.items():
            np.testing.assert_array_equal(program.main.graph.initializers[name].const_value.numpy(), array)

    def test_hub_cache_does_not_open_other_folders(self, tmp_path: Path, saved: onnx.ModelProto) -> None:
        snapshot = _hub_cache(tmp_path, saved)
        (snapshot / "weights.bin").unlink()
        (snapshot / "weights.bin").symlink_to(tmp_path / "weights.bin")
        assert "a link to" in refused(snapshot / "model.onnx")


def _hub_cache(root: Path, proto: onnx.ModelProto) -> Path:
    blobs, snapshot = root / "hub" / "blobs", root / "hub" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "aa").write_bytes(proto.SerializeToString())
    (blobs / "bb").write_bytes((root / "weights.bin").read_bytes())
    (snapshot / "model.onnx").symlink_to("../../blobs/aa")
    (snapshot / "weights.bin").symlink_to("../../blobs/bb")
    return snapshot


class TestOptions:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        (tmp_path / "m.onnx").write_bytes(mlp().SerializeToString())
        return tmp_path / "m.onnx"

    @pytest.mark.parametrize(
        ("spec", "said"),
        [
            ("q:1x4", "is not an input of the model; it has x: float32[batch, 4]"),
            ("x:1x5", "axis 1 can't be 5"),
            ("x:4", "has 2 dimensions, not 1"),
            ("x:1x4:int64", "not int64"),
        ],
    )
    def test_input_specs_that_contradict_the_model(self, path: Path, spec: str, said: str) -> None:
        assert said in refused(path, InputError, inputs=(InputSpec.parse(spec),))

    def test_unknown_dimension(self, path: Path) -> None:
        assert "it has batch" in refused(path, OptionError, dims=(("bacth", DimRange(1, 4)),))


def outcome(path: Path) -> str:
    """The import's result; anything but a program or a CompileError escapes."""
    try:
        import_onnx(path)
    except CompileError as error:
        return type(error).__name__
    return "program"


fuzz = settings(max_examples=150, deadline=5000, suppress_health_check=list(HealthCheck))


@fuzz
@given(seed=st.sampled_from(sorted(SEEDS)), number=st.integers(0, 2**32))
def test_damaged_bytes_are_refused_or_imported(
    seed: str, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.onnx"
    path.write_bytes(damaged_bytes(seed, random.Random(number)))
    outcome(path)


@fuzz
@given(seed=st.sampled_from(sorted(SEEDS)), number=st.integers(0, 2**32))
def test_damaged_graphs_are_refused_or_imported(
    seed: str, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "graph.onnx"
    path.write_bytes(damaged_model(seed, random.Random(number)).SerializeToString())
    outcome(path)


@settings(fuzz, max_examples=100)
@given(seed=st.sampled_from(sorted(SEEDS)), number=st.integers(0, 2**32))
@example(seed="conv", number=2097151)  # keepdims is neither 0 nor 1
def test_damaged_graphs_that_import_stay_well_formed_through_every_pass(
    seed: str, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "passes.onnx"
    path.write_bytes(damaged_model(seed, random.Random(number), changes=1).SerializeToString())
    with suppress(CompileError):
        run_pipeline(import_onnx(path).program, pipeline(CompileOptions()), PassContext(), [Verify()])


@settings(fuzz, max_examples=60)
@given(seed=st.sampled_from(sorted(SEEDS)), number=st.integers(0, 2**32))
def test_damaged_external_data_is_refused_or_imported(
    seed: str, number: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("external")
    rng = random.Random(number)
    proto = onnx.ModelProto.FromString(with_external_data(SEEDS[seed](), folder))
    for change in (other_tensor, rng.choice(CHANGES), other_tensor):
        change(proto, rng)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    outcome(folder / "m.onnx")


_SWEEP = """
import random, sys
from pathlib import Path
from support.mutate import SEEDS, damaged_bytes, damaged_model
from test_bad_models import outcome
path, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for number in range(first, last):
    rng = random.Random(number)
    seed = rng.choice(sorted(SEEDS))
    data = damaged_bytes(seed, rng) if number % 3 else damaged_model(seed, rng).SerializeToString()
    path.write_bytes(data)
    print(number, flush=True)
    outcome(path)
"""


@pytest.mark.slow
def test_a_long_sweep_of_damage_crashes_nothing(tmp_path: Path) -> None:
    """In a process of its own: native code would end it, and the last number printed names the case."""
    tests = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SWEEP, str(tmp_path / "m.onnx"), "0", "4000"],
        env={"PYTHONPATH": f"{tests}:{tests / 'frontends'}", "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert run.returncode == 0, f"case {run.stdout.split()[-1:]}: {run.stderr[-2000:]}"
