"""What an imported ONNX program is: names, sources, layers, dimensions, constants, and its reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from miaotui.compiler.ir.provenance import sources
from miaotui.compiler.ir.verify import problems
from miaotui.compiler.options import CompileOptions, InputSpec
from miaotui.compiler.program import OPSET, DimRange, Program
from miaotui.frontends.base import Import
from miaotui.frontends.onnx import import_onnx
from onnx import TensorProto, helper, numpy_helper
from support.mutate import SEEDS, mlp, with_external_data

node = helper.make_node
FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING


def tensor(name: str, dtype: int = FLOAT, shape: list[Any] | None = None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    constants: dict[str, np.ndarray] | None = None,
    ir_version: int = 8,
    **more: Any,
) -> onnx.ModelProto:
    weights = [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=ir_version, **more
    )


def load(proto: onnx.ModelProto, folder: Path, **options: Any) -> Import:
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return import_onnx(folder / "m.onnx", CompileOptions(**options))


def run(program: Program, inputs: dict[str, Any]) -> dict[str, Any]:
    data = ir.to_proto(program.main).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))


INPUTS: dict[str, dict[str, np.ndarray]] = {
    "mlp": {"x": np.ones((2, 4), np.float32)},
    "conv": {"x": np.ones((2, 3, 8, 8), np.float32)},
    "control": {"x": np.ones(3, np.float32)},
    "functions": {"x": -np.ones((2, 3), np.float32)},
    "attention": {"ids": np.array([[1, 2, 6]]), "mask": np.array([[1, 1, 0]])},
}


@pytest.mark.parametrize("name", SEEDS)
def test_imported_program_computes_what_the_file_does(name: str, tmp_path: Path) -> None:
    result = load(SEEDS[name](), tmp_path)
    assert problems(result.program.main) == []
    assert result.program.main.opset_imports[""] == OPSET
    assert not result.program.main.functions
    assert not any(n.op_type == "Constant" for n in result.program.main.graph.all_nodes())
    want, got = result.reference.run(INPUTS[name]), run(result.program, INPUTS[name])
    assert list(want) == list(got)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SEEDS)
def test_every_node_has_a_unique_name_and_a_source(name: str, tmp_path: Path) -> None:
    nodes = list(load(SEEDS[name](), tmp_path).program.main.graph.all_nodes())
    assert len({n.name for n in nodes}) == len(nodes)
    assert all(sources(n) for n in nodes)


def test_sources_and_layers_follow_the_slash_separated_names(tmp_path: Path) -> None:
    result = load(mlp(), tmp_path)
    gemm = next(n for n in result.program.main.graph if n.op_type == "Gemm")
    assert [str(s) for s in sources(gemm)] == ["onnx fc1 (Gemm)"]
    assert result.program.layers == {"fc1": "r", "fc2": "y"}
    layers = result.reference.layers(INPUTS["mlp"])
    assert set(layers) == {"fc1", "fc2"}
    np.testing.assert_array_equal(layers["fc2"], result.reference.run(INPUTS["mlp"])["y"])
    weights = {t.name: numpy_helper.to_array(t) for t in mlp().graph.initializer}
    hidden = np.maximum(INPUTS["mlp"]["x"] @ weights["w"].T + weights["b"], 0)
    np.testing.assert_allclose(layers["fc1"], hidden, rtol=1e-5)


def test_torch_exports_keep_module_path_and_source_line(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x"], ["y"], name="node_relu")], [tensor("x", FLOAT, [2])], [tensor("y")])
    proto.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.name_scopes", value="['', 'encoder', 'encoder.act', 'relu']"
    )
    proto.graph.node[0].metadata_props.add(
        key="pkg.torch.onnx.stack_trace", value='File "/a/net.py", line 7, in forward\n    return x'
    )
    program = load(proto, tmp_path).program
    source = sources(next(iter(program.main.graph)))[0]
    assert (source.layer, source.line) == ("encoder.act", "net.py:7")


def test_nodes_of_a_function_have_the_source_of_its_call(tmp_path: Path) -> None:
    program = load(SEEDS["functions"](), tmp_path).program
    assert {s.op for n in program.main.graph for s in sources(n)} == {"Block_0"}


def test_dimensions_are_named_and_ranged(tmp_path: Path) -> None:
    proto = model([node("Relu", ["x.1"], ["y"])], [tensor("x.1", FLOAT, ["b", None, 3])], [tensor("y")])
    dims = (("b", DimRange(1, 8)),)
    program = load(proto, tmp_path, dims=dims).program
    assert str(program.inputs()[0]) == "x.1: float32[b, x_1_dim1, 3]"
    assert program.dims == {"b": DimRange(1, 8), "x_1_dim1": DimRange()}
    assert program.outputs()[0].shape == ("b", "x_1_dim1", 3)


def test_a_range_of_one_size_and_an_input_spec_fix_a_dimension_everywhere(tmp_path: Path) -> None:
    proto = model(
        [node("Add", ["x", "z"], ["y"])],
        [tensor("x", FLOAT, ["b", 3]), tensor("z", FLOAT, ["b", 1])],
        [tensor("y", FLOAT, ["b", 3])],
    )
    fixed = load(proto, tmp_path, dims=(("b", DimRange(4, 4)),)).program
    assert [s.shape for s in (*fixed.inputs(), *fixed.outputs())] == [(4, 3), (4, 1), (4, 3)]
    assert fixed.dims == {}
    spec = load(proto, tmp_path, inputs=(InputSpec.parse("x:2x3"),)).program
    assert [s.shape for s in (*spec.inputs(), *spec.outputs())] == [(2, 3), (2, 1), (2, 3)]
    renamed = load(proto, tmp_path, inputs=(InputSpec.parse("x:[rows,3]"),)).program
    assert [s.shape for s in renamed.inputs()] == [("rows", 3), ("rows", 1)]


def test_odd_dimensions_become_names_and_expressions_follow_their_symbols(tmp_path: Path) -> None:
    proto = model(
        [node("Concat", ["x", "z"], ["y"], axis=1), node("Relu", ["m"], ["n"])],
        [tensor("x", FLOAT, ["batch size", -1]), tensor("z", FLOAT, ["batch size", "seq"]),
         tensor("m", FLOAT, ["seq + past"])],
        [tensor("y"), tensor("n", FLOAT, ["seq + past"])],
    )  # fmt: skip
    program = load(proto, tmp_path).program
    assert [s.shape for s in program.inputs()] == [
        ("batch_size", "x_dim1"),
        ("batch_size", "seq"),
        ("seq + past",),
    ]
    assert set(program.dims) == {"batch_size", "x_dim1", "seq", "past"}
    one = load(proto, tmp_path, dims=(("seq", DimRange(1, 1)),)).program
    assert one.inputs()[2].shape == ("1 + past",)
    both = load(proto, tmp_path, dims=(("seq", DimRange(1, 1)), ("past", DimRange(7, 7)))).program
    assert both.inputs()[2].shape == both.outputs()[1].shape == (8,)


def test_names_of_inputs_and_outputs_are_kept_exactly(tmp_path: Path) -> None:
    proto = model(
        [node("Relu", ["in put:0"], ["mid"], name="n"), node("Abs", ["mid"], ["out/put:0"], name="n")],
        [tensor("in put:0", FLOAT, [2])],
        [tensor("out/put:0"), tensor("mid")],
    )
    program = load(proto, tmp_path).program
    assert [s.name for s in program.inputs()] == ["in put:0"]
    assert [s.name for s in program.outputs()] == ["out/put:0", "mid"]
    assert program.call is not None and program.call.parameters == {"in put:0": "in put:0"}


def test_initializers_listed_as_inputs_are_constants_before_ir_version_4(tmp_path: Path) -> None:
    inputs = [tensor("x", FLOAT, [3]), tensor("w", FLOAT, [3])]
    nodes, constants = [node("Add", ["x", "w"], ["y"])], {"w": np.ones(3, np.float32)}
    old = load(model(nodes, inputs, [tensor("y")], constants, ir_version=3), tmp_path).program
    assert [v.name for v in old.main.graph.inputs] == ["x"]
    new = load(model(nodes, inputs, [tensor("y")], constants, ir_version=4), tmp_path).program
    assert [v.name for v in new.main.graph.inputs] == ["x", "w"]
    assert [s.name for s in new.inputs()] == ["x"]
    given = load(
        model(nodes, inputs, [tensor("y")], constants), tmp_path, inputs=(InputSpec.parse("w:3"),)
    ).program
    assert [s.name for s in given.inputs()] == ["x", "w"]


def test_sparse_constants_become_dense(tmp_path: Path) -> None:
    def sparse(indices: list[Any]) -> onnx.SparseTensorProto:
        values = numpy_helper.from_array(np.array([1, 2], np.float32), "w")
        return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(indices)), [2, 3])

    proto = model(
        [
            node("Constant", [], ["c"], sparse_value=sparse([[0, 1], [1, 2]])),
            node("Sum", ["x", "w", "c"], ["y"]),
        ],
        [tensor("x", FLOAT, [2, 3])],
        [tensor("y")],
    )
    proto.graph.sparse_initializer.append(sparse([1, 5]))
    got = run(load(proto, tmp_path).program, {"x": np.zeros((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(got, [[0, 2, 0], [0, 0, 4]])


def test_sequences_optionals_and_strings_run_through(tmp_path: Path) -> None:
    proto = model(
        [
            node("SequenceConstruct", ["x", "x"], ["s"]),
            node("SequenceLength", ["s"], ["n"]),
            node("ConcatFromSequence", ["s"], ["c"], axis=0),
            node("Optional", ["c"], ["o"]),
            node("OptionalGetElement", ["o"], ["y"]),
            node("Identity", ["t"], ["u"]),
        ],
        [tensor("x", FLOAT, ["n"]), tensor("t", STRING, [2])],
        [tensor("y"), tensor("n", INT64, []), tensor("u", STRING, [2])],
    )
    result = load(proto, tmp_path)
    inputs = {"x": np.arange(3, dtype=np.float32), "t": np.array(["a", "é"], object)}
    want, got = result.reference.run(inputs), run(result.program, inputs)
    assert got["u"].tolist() == ["a", "é"] and got["n"] == 2
    np.testing.assert_array_equal(got["y"], want["y"])


def test_external_weights_stay_on_disk_and_the_reference_taps_them(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(with_external_data(mlp(), tmp_path))
    result = import_onnx(tmp_path / "m.onnx")
    weights = result.program.main.graph.initializers
    assert all(isinstance(weights[name].const_value, ir.ExternalTensor) for name in ("w", "b", "v"))
    layers = result.reference.layers(INPUTS["mlp"])
    np.testing.assert_allclose(layers["fc2"], result.reference.run(INPUTS["mlp"])["y"], rtol=1e-6)


def test_hard_linked_data_files_are_read(tmp_path: Path) -> None:
    """Package managers link files from their caches."""
    (tmp_path / "m.onnx").write_bytes(with_external_data(mlp(), tmp_path))
    (tmp_path / "again.bin").hardlink_to(tmp_path / "weights.bin")
    weight = import_onnx(tmp_path / "m.onnx").program.main.graph.initializers["w"].const_value
    np.testing.assert_array_equal(weight.numpy(), numpy_helper.to_array(mlp().graph.initializer[0]))


def test_relative_paths_survive_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.onnx").write_bytes(with_external_data(mlp(), tmp_path))
    monkeypatch.chdir(tmp_path)
    result = import_onnx("m.onnx")
    monkeypatch.chdir(tmp_path.parent)
    assert result.program.main.graph.initializers["w"].const_value.numpy().shape == (6, 4)
    assert result.reference.run(INPUTS["mlp"])["y"].shape == (2, 3)
    assert result.reference.name.startswith("onnxruntime ")


def test_reference_falls_back_to_onnx_where_onnxruntime_refuses(tmp_path: Path) -> None:
    nodes = [node("Add", ["x", "b"], ["y"], broadcast=1, axis=0)]
    proto = model(nodes, [tensor("x", FLOAT, [2, 3])], [tensor("y")], {"b": np.array([1, 2], np.float32)})
    proto.opset_import[0].version = 6
    reference = load(proto, tmp_path).reference
    got = reference.run({"x": np.zeros((2, 3), np.float32)})["y"]
    np.testing.assert_array_equal(got, [[1, 1, 1], [2, 2, 2]])
    assert reference.name.startswith("onnx.reference") and "onnxruntime can't load it" in reference.name
