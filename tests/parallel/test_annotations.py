"""Stages and shardings: verified, and through ONNX's own multi-device metadata and back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from miaotui.compiler.codegen.onnxruntime import OnnxRuntimeBackend
from miaotui.compiler.dialect import MIAOTUI
from miaotui.compiler.errors import InternalError
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.verify import verify
from miaotui.compiler.options import Target
from miaotui.compiler.parallel.devices import clear_devices, read_devices, write_devices
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.parallel.sharding import KEY, Sharding, Split, set_sharding, set_stage, sharding, stage
from miaotui.compiler.program import Program
from miaotui.driver.partition import write_plan
from support.folders import mlp

MESH = Mesh(dp=2, pp=2, tp=2)


def annotated() -> Program:
    """x → product (stage 0) of split columns → product of split rows, a partial sum → sum (stage 1)."""
    b = Builder()
    x = b.input("x", ("batch", 8))
    up, down = b.weight("w", [[0.5] * 12] * 8), b.weight("v", [[0.5] * 8] * 12)
    hidden = b.op("MatMul", x, up, name="up")
    partial = b.op("MatMul", hidden, down, name="down")
    total = b.op("AllReduce", partial, domain=MIAOTUI, over="tp", name="sum")
    b.output(b.op("Add", total, x, name="residual"), "y")
    columns, rows = (Sharding({axis: Split.even("tp", 12, 2)}) for axis in (1, 0))
    for value, found in ((up, columns), (hidden, columns), (down, rows), (partial, Sharding(partial="tp"))):
        set_sharding(value, found)
    program = b.program()
    for node in program.main.graph:
        set_stage(node, 0 if node.name == "up" else 1)
    program.mesh = MESH
    return program


def named(program: Program) -> tuple[dict[str, ir.Node], dict[str, ir.Value]]:
    nodes = {str(node.name): node for node in program.main.graph}
    values = {
        str(v.name): v for node in nodes.values() for v in (*node.inputs, *node.outputs) if v is not None
    }
    return nodes, values


def test_annotations_that_agree_pass() -> None:
    verify(annotated())


def split_of(runs: tuple[tuple[int, int, int], ...]) -> Sharding:
    return Sharding({1: Split("tp", runs)})


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (lambda n, v: set_stage(n["down"], 2), "is in stage 2 of 2"),
        (lambda n, v: (set_stage(n["up"], 1), set_stage(n["down"], 0)), "of stage 1, which runs behind it"),
        (lambda n, v: set_sharding(n["down"].outputs[0], Sharding()), "which is no partial sum"),
        (lambda n, v: set_sharding(n["sum"].outputs[0], Sharding(partial="tp")), "before it is reduced"),
        (lambda n, v: set_sharding(v["y"], Sharding(partial="tp")), "nobody reduces it"),
        (
            lambda n, v: set_sharding(v["w"], split_of(((0, 1, 6), (1, 2, 5)))),
            "has 12 elements, its split 11",
        ),
        (lambda n, v: set_sharding(v["w"], split_of(((0, 1, 6), (2, 3, 6)))), "not among 2"),
        (lambda n, v: set_sharding(v["w"], Sharding({2: Split.even("tp", 12, 2)})), "along axis 2 of 2"),
    ],
)
def test_annotations_that_contradict_themselves_are_named(
    change: Callable[[dict[str, ir.Node], dict[str, ir.Value]], object], fact: str
) -> None:
    program = annotated()
    change(*named(program))
    with pytest.raises(InternalError, match=fact):
        verify(program)


def test_annotations_go_through_onnx_and_back(tmp_path: Path) -> None:
    program = annotated()
    write_devices(program.main, MESH)
    ir.save(program.main, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    assert proto.ir_version >= 11 and proto.configuration[0].num_devices == 8
    placed = {node.name: node.device_configurations[0] for node in proto.graph.node}
    assert {name: found.pipeline_stage for name, found in placed.items()} == {
        "up": 0, "down": 1, "sum": 1, "residual": 1,
    }  # fmt: skip
    specs = {spec.tensor_name: spec for spec in placed["up"].sharding_spec}
    groups = {entry.key: list(entry.value) for entry in specs["w"].index_to_device_group_map}
    assert [groups[key] for key in specs["w"].device] == [[0, 4], [1, 5]]  # a shard in both replicas
    assert specs["w"].sharded_dim[0].simple_sharding[0].num_shards == 2

    model = ir.load(tmp_path / "model.onnx")
    for node in model.graph:  # as if another tool had written it
        set_stage(node, None)
        for value in (*node.inputs, *node.outputs):
            if value is not None and sharding(value).partial is None:
                value.metadata_props.pop(KEY, None)
    assert read_devices(model) == MESH
    wanted, found = named(program), named(Program({"main": model}))
    assert {name: stage(node) for name, node in found[0].items()} == {
        name: stage(node) for name, node in wanted[0].items()
    }
    assert {name: sharding(value) for name, value in found[1].items()} == {
        name: sharding(value) for name, value in wanted[1].items()
    }
    clear_devices(model)
    assert read_devices(model) is None


def test_a_plan_comes_with_the_annotated_program(tmp_path: Path) -> None:
    write_plan(mlp(), Mesh(pp=3), OnnxRuntimeBackend(), Target(), tmp_path / "plan")
    model = ir.load(tmp_path / "plan/annotated/main.onnx")
    assert read_devices(model) == Mesh(pp=3)
    assert sorted({stage(node) for node in model.graph}) == [0, 1, 2]
