"""Small valid ONNX models, and ways to damage them: what a fuzz of the importer starts from."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F, INT, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _array(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _model(
    nodes: list[onnx.NodeProto],
    inputs: list[tuple[str, int, list[Any]]],
    outputs: list[str],
    constants: dict[str, np.ndarray[Any, Any]],
    opset: int = 17,
    **more: Any,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(name, F, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8, **more)


def mlp() -> onnx.ModelProto:
    """Two dense layers, dynamic batch, an old Softmax."""
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="/fc1/Gemm", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="/fc1/Relu"),
        helper.make_node("MatMul", ["r", "v"], ["m"], name="/fc2/MatMul"),
        helper.make_node("Softmax", ["m"], ["y"], name="/fc2/Softmax"),
    ]
    constants = {"w": _array(6, 4), "b": _array(6), "v": _array(6, 3)}
    return _model(nodes, [("x", F, ["batch", 4])], ["y"], constants, opset=11)


def conv() -> onnx.ModelProto:
    """A convolution with BatchNormalization, pooling, resizing and a computed Reshape."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "k"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[1, 1]),
        node("BatchNormalization", ["c", "s", "s", "s", "t"], ["n"], epsilon=1e-3),
        node("Clip", ["n"], ["l"], min=0.0, max=6.0),
        node("MaxPool", ["l"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Upsample", ["p", "f"], ["u"], mode="nearest"),
        node("Pad", ["u"], ["q"], pads=[0, 0, 1, 1, 0, 0, 1, 1], value=0.5),
        node("ReduceMean", ["q"], ["a"], axes=[2, 3], keepdims=1),
        node("Shape", ["a"], ["sh"]),
        node("Slice", ["sh"], ["b"], starts=[0], ends=[1], axes=[0]),
        node("Unsqueeze", ["one"], ["o"], axes=[0]),
        node("Concat", ["b", "o"], ["z"], axis=0),
        node("Reshape", ["a", "z"], ["y"]),
    ]
    constants = {
        "k": _array(5, 3, 3, 3), "s": _array(5), "t": np.ones(5, np.float32),
        "f": np.array([1, 1, 2, 2], np.float32), "one": np.array(-1),
    }  # fmt: skip
    return _model(nodes, [("x", F, ["n", 3, 8, 8])], ["y"], constants, opset=9)


def control() -> onnx.ModelProto:
    """If inside Loop, with values of the outer scopes, and a Scan."""
    node, info = helper.make_node, helper.make_tensor_value_info
    then = helper.make_graph([node("Add", ["a", "w"], ["t"])], "then", [], [info("t", F, None)])
    other = helper.make_graph([node("Mul", ["a", "w"], ["e"])], "else", [], [info("e", F, None)])
    body = helper.make_graph(
        [
            node("ReduceSum", ["a"], ["s"], keepdims=0),
            node("Greater", ["s", "zero"], ["g"]),
            node("If", ["g"], ["o"], then_branch=then, else_branch=other),
            node("Identity", ["c"], ["d"]),
        ],
        "body",
        [info("i", INT, []), info("c", B, []), info("a", F, [3])],
        [info("d", B, []), info("o", F, [3])],
    )
    step = helper.make_graph(
        [node("Add", ["p", "q"], ["r"]), node("Identity", ["r"], ["r2"])],
        "step",
        [info("p", F, []), info("q", F, [])],
        [info("r", F, []), info("r2", F, [])],
    )
    nodes = [
        node("Loop", ["n", "", "x"], ["l"], body=body),
        node("Scan", ["zero", "l"], ["last", "y"], body=step, num_scan_inputs=1),
    ]
    constants = {"w": _array(3), "zero": np.array(0, np.float32), "n": np.array(2)}
    return _model(nodes, [("x", F, [3])], ["y", "last"], constants, opset=16)


def functions() -> onnx.ModelProto:
    """Two nested functions, one of another opset, with attributes handed down."""
    two = helper.make_node("Constant", [], ["c"], value_float=2.0)
    inner = helper.make_function(
        "own", "Scale", ["a"], ["b"], [two, helper.make_node("Mul", ["a", "c"], ["b"])],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    leaky = helper.make_node("LeakyRelu", ["s"], ["q"])
    leaky.attribute.add(name="alpha", ref_attr_name="slope", type=onnx.AttributeProto.FLOAT)
    outer = helper.make_function(
        "own", "Block", ["p"], ["q"], [helper.make_node("Scale", ["p"], ["s"], domain="own"), leaky],
        [helper.make_opsetid("", 16), helper.make_opsetid("own", 1)], ["slope"],
    )  # fmt: skip
    nodes = [helper.make_node("Block", ["x"], ["y"], domain="own", slope=0.1)]
    return _model(nodes, [("x", F, [2, "d"])], ["y"], {}, functions=[inner, outer])


def attention() -> onnx.ModelProto:
    """Attention in old operators: transposes, Split, masks, Gather, Cast, ConstantOfShape, Where."""
    node = helper.make_node
    nodes = [
        node("Gather", ["table", "ids"], ["x"]),
        node("MatMul", ["x", "w"], ["qkv"]),
        node("Split", ["qkv"], ["q", "k", "v"], axis=2),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Cast", ["mask"], ["mb"], to=B),
        node("Unsqueeze", ["mb"], ["mu"], axes=[1]),
        node("Shape", ["s"], ["ss"]),
        node("ConstantOfShape", ["ss"], ["inf"], value=numpy_helper.from_array(np.array([-1e9], np.float32))),
        node("Where", ["mu", "s", "inf"], ["sm"]),
        node("Softmax", ["sm"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["y"]),
    ]
    inputs: list[tuple[str, int, list[Any]]] = [("ids", INT, ["b", "t"]), ("mask", INT, ["b", "t"])]
    return _model(nodes, inputs, ["y"], {"table": _array(7, 4), "w": _array(4, 12)}, opset=12)


SEEDS: dict[str, Callable[[], onnx.ModelProto]] = {
    "mlp": mlp, "conv": conv, "control": control, "functions": functions, "attention": attention,
}  # fmt: skip


@cache
def _bytes(seed: str) -> bytes:
    return SEEDS[seed]().SerializeToString()


def with_external_data(proto: onnx.ModelProto, folder: Path) -> bytes:
    """The model with all weights in ``folder/weights.bin``."""
    (folder / "weights.bin").unlink(missing_ok=True)
    onnx.save(
        proto, folder / "saved.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return (folder / "saved.onnx").read_bytes()


def damaged_bytes(seed: str, rng: random.Random) -> bytes:
    """The seed's file with a few bytes flipped, cut, repeated or inserted."""
    data = bytearray(_bytes(seed))
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(max(len(data), 1))
        match rng.randrange(5):
            case 0 if data:
                data[at] = rng.randrange(256)
            case 1 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                del data[at:]
            case 3:
                del data[at : at + rng.randint(1, 9)]
            case _:
                data[at:at] = data[at : at + rng.randint(1, 40)] or b"\xff"
    return bytes(data)


def damaged_model(seed: str, rng: random.Random, changes: int = 3) -> onnx.ModelProto:
    """The seed with one to ``changes`` changes that keep it a parsable message."""
    proto = onnx.ModelProto.FromString(_bytes(seed))
    for _ in range(rng.randint(1, changes)):
        rng.choice(CHANGES)(proto, rng)
    return proto


def _owners(proto: onnx.ModelProto) -> list[Any]:
    found: list[Any] = [proto.graph, *proto.functions]
    for owner in found:
        for node in owner.node:
            for attribute in node.attribute:
                found += [attribute.g] if attribute.HasField("g") else []
                found += attribute.graphs
    return found


def _owner(proto: onnx.ModelProto, rng: random.Random) -> Any:
    return rng.choice([owner for owner in _owners(proto) if owner.node] or [proto.graph])


def _node(proto: onnx.ModelProto, rng: random.Random) -> onnx.NodeProto:
    owner = _owner(proto, rng)
    return rng.choice(owner.node) if owner.node else owner.node.add(op_type="Relu")


def _names(proto: onnx.ModelProto) -> list[str]:
    return [
        "",
        "nowhere",
        *(name for owner in _owners(proto) for n in owner.node for name in (*n.input, *n.output)),
    ]


def drop_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    owner = _owner(proto, rng)
    if owner.node:
        del owner.node[rng.randrange(len(owner.node))]


def duplicate_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    copy = onnx.NodeProto.FromString(_node(proto, rng).SerializeToString())
    _owner(proto, rng).node.append(copy)


def shuffle_nodes(proto: onnx.ModelProto, rng: random.Random) -> None:
    owner = _owner(proto, rng)
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in owner.node]
    rng.shuffle(nodes)
    del owner.node[:]
    owner.node.extend(nodes)


def rewire(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    side = rng.choice([node.input, node.output])
    if side:
        side[rng.randrange(len(side))] = rng.choice(_names(proto))


def resize_node(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    side = rng.choice([node.input, node.output])
    if side and rng.random() < 0.5:
        del side[rng.randrange(len(side)) :]
    else:
        side.extend(rng.choices(_names(proto), k=rng.randint(1, 5)))


def other_operator(proto: onnx.ModelProto, rng: random.Random) -> None:
    schema = rng.choice(onnx.defs.get_all_schemas())
    node = _node(proto, rng)
    node.op_type = rng.choice([schema.name, schema.name, "Nonsense", ""])
    node.domain = rng.choice([schema.domain, "", "com.microsoft", "own"])


def other_attribute(proto: onnx.ModelProto, rng: random.Random) -> None:
    node = _node(proto, rng)
    if not node.attribute or rng.random() < 0.3:
        names = [
            "axis",
            "axes",
            "to",
            "perm",
            "pads",
            "mode",
            "split",
            "value",
            "body",
            "scales",
            "num_outputs",
        ]
        node.attribute.add(name=rng.choice(names))
    attribute = rng.choice(node.attribute)
    number = rng.choice([0, 1, -1, 7, -(2**63), 2**63 - 1, 2**31])
    match rng.randrange(7):
        case 0:
            attribute.i, attribute.type = number, onnx.AttributeProto.INT
        case 1:
            attribute.f, attribute.type = (
                rng.choice([0.0, float("nan"), float("inf"), -3.5]),
                onnx.AttributeProto.FLOAT,
            )
        case 2:
            del attribute.ints[:]
            attribute.ints.extend([number] * rng.randint(0, 6))
            attribute.type = onnx.AttributeProto.INTS
        case 3:
            attribute.s, attribute.type = (
                rng.choice([b"", b"\xff\xfe", b"linear"]),
                onnx.AttributeProto.STRING,
            )
        case 4:
            attribute.type = rng.randrange(15)
        case 5:
            attribute.ref_attr_name = rng.choice(["slope", "none"])
        case _:
            node.attribute.remove(attribute)


def other_tensor(proto: onnx.ModelProto, rng: random.Random) -> None:
    tensors = [t for owner in _owners(proto) for t in getattr(owner, "initializer", ())]
    if not tensors:
        return
    tensor = rng.choice(tensors)
    match rng.randrange(6):
        case 0:
            tensor.dims.append(rng.choice([0, 1, 2, -1, 10**12, 2**62]))
        case 1 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice([0, 1, 2, -1, 10**12, 2**62])
        case 2:
            tensor.data_type = rng.randrange(30)
        case 3:
            tensor.raw_data = tensor.raw_data[: rng.randrange(len(tensor.raw_data) + 1)]
        case 4:
            tensor.data_location = TensorProto.EXTERNAL
            keys = ["location", "offset", "length", "checksum"]
            values = [
                "weights.bin",
                "../etc/passwd",
                "/etc/passwd",
                "-1",
                "0",
                "99999999999999999999",
                "x",
                "",
            ]
            tensor.external_data.add(key=rng.choice(keys), value=rng.choice(values))
        case _:
            tensor.name = rng.choice(_names(proto))


def other_type(proto: onnx.ModelProto, rng: random.Random) -> None:
    owners = [owner for owner in _owners(proto) if hasattr(owner, "input") and hasattr(owner, "initializer")]
    values = [value for owner in owners for value in (*owner.input, *owner.output, *owner.value_info)]
    if not values:
        return
    value = rng.choice(values)
    kind = value.type.tensor_type
    match rng.randrange(6):
        case 0:
            kind.elem_type = rng.randrange(30)
        case 1:
            kind.shape.dim.add(dim_value=rng.choice([0, 1, -1, 2**40, 2**62]))
        case 2:
            kind.shape.dim.add(dim_param=rng.choice(["batch", "n", "", "a b", "n*2"]))
        case 3:
            value.type.sequence_type.elem_type.tensor_type.elem_type = rng.randrange(20)
        case 4:
            value.ClearField("type")
        case _:
            value.name = rng.choice(_names(proto))


def other_header(proto: onnx.ModelProto, rng: random.Random) -> None:
    match rng.randrange(5):
        case 0 if proto.opset_import:
            rng.choice(proto.opset_import).version = rng.choice(
                [-1, 0, 1, 6, 7, 12, 18, 22, 23, 24, 99, 2**40]
            )
        case 1 if proto.opset_import:
            del proto.opset_import[rng.randrange(len(proto.opset_import))]
        case 2:
            proto.ir_version = rng.choice([-1, 0, 1, 3, 4, 9, 13, 99])
        case 3:
            del proto.graph.output[:]
        case _:
            proto.opset_import.add(domain=rng.choice(["", "ai.onnx", "x"]), version=rng.randrange(30))


CHANGES = (
    drop_node, duplicate_node, shuffle_nodes, rewire, rewire, resize_node, other_operator, other_operator,
    other_attribute, other_attribute, other_tensor, other_type, other_header,
)  # fmt: skip
