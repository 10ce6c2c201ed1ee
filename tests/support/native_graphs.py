"""Small graphs of every operator that native code is emitted for generically, by what they show."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from miaotui.compiler.codegen.native.emit.expressions import EXPRESSIONS
from miaotui.compiler.ir.builder import BOOL, FLOAT, INT32, INT64, Builder

Shape = Sequence[int | str]


_ATTRIBUTES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "Gelu": [{}, {"approximate": "tanh"}],
    "Mod": [{}, {"fmod": 1}],
    "IsInf": [{}, {"detect_positive": 0}, {"detect_negative": 0}],
    "Elu": [{}, {"alpha": 0.3}],
    "Celu": [{"alpha": 2.0}],
    "Selu": [{}],
    "LeakyRelu": [{}, {"alpha": 0.2}],
    "HardSigmoid": [{}, {"alpha": 0.3, "beta": 0.4}],
    "Shrink": [{"lambd": 1.0, "bias": 0.5}],
    "ThresholdedRelu": [{"alpha": 0.7}],
}
_COUNTS = {
    "Where": 3,
    "Clip": 3,
    "Sum": 3,
    "Mean": 3,
    "Max": 3,
    "Min": 2,
    **dict.fromkeys(
        [
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Mod",
            "Pow",
            "Equal",
            "Less",
            "LessOrEqual",
            "Greater",
            "PRelu",
            "GreaterOrEqual",
            "And",
            "Or",
            "Xor",
            "BitwiseAnd",
            "BitwiseOr",
            "BitwiseXor",
        ],
        2,
    ),
}
_DTYPES = {
    FLOAT: [
        n for n in EXPRESSIONS if not n.startswith("Bitwise") and n not in ("And", "Or", "Xor", "Not", "Cast")
    ],
    INT64: [
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Mod",
        "Pow",
        "Max",
        "Min",
        "Clip",
        "Where",
        "Equal",
        "Less",
        "LessOrEqual",
        "Greater",
        "GreaterOrEqual",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "BitwiseNot",
        "Neg",
        "Abs",
        "Sign",
        "Relu",
    ],
    BOOL: ["And", "Or", "Xor", "Not", "Equal", "Where"],
}
_DTYPES[INT32] = _DTYPES[INT64]


def elementwise() -> list[tuple[str, ir.Model]]:
    made = []
    shapes: Sequence[Shape] = [("m", 3, "n"), ("n",), ("m", 1, 1)]
    for dtype, operators in _DTYPES.items():
        for name in operators:
            for attributes in _ATTRIBUTES.get(name, [{}]):
                if name == "Swish" or (name == "Mod" and dtype == FLOAT and not attributes):
                    continue
                b = Builder()
                count = _COUNTS.get(name, 1)
                given = shapes[:count]
                if name == "PRelu":
                    given = [("m", 3, "n"), ("n",)]
                if name == "Clip":
                    given = [("m", 3, "n"), (), ()]
                dtypes = [BOOL, dtype, dtype] if name == "Where" else [dtype] * count
                values = [b.input(f"x{i}", s, t) for i, (s, t) in enumerate(zip(given, dtypes, strict=True))]
                b.output(b.op(name, *values, **attributes), "y")
                made.append((f"{name} {dtype.name} {attributes}", b.model()))
    for source in (FLOAT, INT64, INT32, BOOL):
        for target in (FLOAT, INT64, INT32, BOOL):
            b = Builder()
            b.output(b.op("Cast", b.input("x", ("m", "n"), source), to=target), "y")
            made.append((f"Cast {source.name} {target.name}", b.model()))
    return made


def graph_of(build: Callable[[Builder], ir.Value | Sequence[ir.Value]]) -> ir.Model:
    b = Builder()
    made = build(b)
    for place, value in enumerate([made] if isinstance(made, ir.Value) else made):
        b.output(value, f"y{place}")
    return b.model()


def _shaped(value: ir.Value, *shape: int | str) -> ir.Value:
    """``value`` with sizes that shape inference does not derive."""
    value.shape, value.type = ir.Shape(shape), ir.TensorType(FLOAT)
    return value


def integers(b: Builder, name: str, values: Any) -> ir.Value:
    return b.weight(name, np.array(values, np.int64))


def _transposed(b: Builder) -> ir.Value:
    """[m, 3, n, 4] that lies otherwise."""
    return b.op("Transpose", b.input("x", ("m", "n", 3, 4)), perm=[0, 2, 1, 3])


def movement() -> Mapping[str, ir.Model]:
    f = ("m", 3, "n", 4)
    return {
        "Shape": graph_of(lambda b: b.op("Shape", b.input("x", f), start=1)),
        "Size": graph_of(lambda b: b.op("Size", b.input("x", f))),
        "shape arithmetic": graph_of(
            lambda b: b.op(
                "Mul",
                b.op("Add", b.op("Shape", b.input("x", f)), integers(b, "one", [1])),
                integers(b, "two", [2, 3, 4, 5]),
            )
        ),
        "Range": graph_of(
            lambda b: b.op(
                "Range",
                integers(b, "zero", 0),
                b.op("Squeeze", b.op("Shape", b.input("x", f), start=2, end=3)),
                integers(b, "one", 1),
            )
        ),
        "ConstantOfShape": graph_of(
            lambda b: b.op(
                "ConstantOfShape",
                b.op("Shape", b.input("x", f)),
                value=ir.tensor(np.array([2.5], np.float32)),
            )
        ),
        "Concat": graph_of(
            lambda b: _shaped(
                b.op("Concat", _transposed(b), b.input("z", f), b.input("u", ("m", 3, 0, 4)), axis=2),
                "m",
                3,
                "2*n",
                4,
            )
        ),
        "Concat 0": graph_of(
            lambda b: _shaped(
                b.op("Concat", b.input("x", ("m", 2)), b.input("z", ("n", 2)), axis=0), "m + n", 2
            )
        ),
        "Tile": graph_of(lambda b: b.op("Tile", _transposed(b), integers(b, "r", [1, 2, 1, 3]))),
        "Tile 1": graph_of(lambda b: b.op("Tile", _transposed(b), integers(b, "r", [1, 1, 1, 1]))),
        "Trilu": graph_of(
            lambda b: [
                b.op("Trilu", b.input("x", ("m", "n", 6))),
                b.op("Trilu", b.graph.inputs[0], integers(b, "k", -2), upper=0),
                b.op("Trilu", b.graph.inputs[0], integers(b, "k1", 2)),
            ]
        ),
        "Pad": graph_of(
            lambda b: _shaped(
                b.op(
                    "Pad",
                    _transposed(b),
                    integers(b, "p", [1, 0, 0, 2, 0, 1, 0, 3]),
                    b.weight("v", np.float32(7)),
                ),
                "m + 1",
                4,
                "n",
                9,
            )
        ),
        "Pad axes": graph_of(
            lambda b: _shaped(
                b.op("Pad", _transposed(b), integers(b, "p", [2, 1]), None, integers(b, "a", [-1])),
                "m",
                3,
                "n",
                7,
            )
        ),
        "Expand": graph_of(
            lambda b: b.op(
                "Add",
                b.op("Expand", b.input("x", (3, 1)), b.op("Shape", b.input("z", ("m", 3, "n")))),
                b.graph.inputs[1],
            )
        ),
        "Slice": graph_of(
            lambda b: _shaped(
                b.op(
                    "Neg",
                    b.op(
                        "Slice",
                        _transposed(b),
                        integers(b, "s", [-1, 1]),
                        integers(b, "e", [-9, 3]),
                        integers(b, "a", [1, 3]),
                        integers(b, "t", [-1, 1]),
                    ),
                ),
                "m",
                3,
                "n",
                2,
            )
        ),
        "Split": graph_of(
            lambda b: [
                b.op("Neg", v)
                for v in b.ops("Split", _transposed(b), integers(b, "s", [1, 3]), axis=-1, outputs=2)
            ]
        ),
        "Reshape": graph_of(lambda b: b.op("Reshape", _transposed(b), integers(b, "s", [0, -1, 2]))),
    }


def reductions() -> Mapping[str, ir.Model]:
    made = {}
    for name in (
        "ReduceSum",
        "ReduceMean",
        "ReduceMax",
        "ReduceMin",
        "ReduceProd",
        "ReduceL1",
        "ReduceL2",
        "ReduceSumSquare",
        "ReduceLogSum",
    ):
        for axes in ([-1], [1, 2], [0, 2], [0], None):
            for keepdims in (0, 1):

                def build(b: Builder, name: str = name, axes: Any = axes, keep: int = keepdims) -> ir.Value:
                    x = b.op("Transpose", b.input("x", ("n", 6, "m")), perm=[0, 2, 1])
                    x = b.op(
                        "Exp",
                        b.op("Mul", x, b.weight("h", np.float32(0.25 if name != "ReduceProd" else 1e-3))),
                    )
                    if axes != [-1]:
                        x = b.op("Transpose", x, perm=[1, 0, 2])
                    given = [] if axes is None else [integers(b, "axes", axes)]
                    return b.op(name, x, *given, keepdims=keep)

                made[f"{name} {axes} {keepdims}"] = graph_of(build)
    for name in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"):
        made[f"{name} integers"] = graph_of(
            lambda b, name=name: b.op(name, b.input("x", ("m", 3), INT64), integers(b, "a", [1]), keepdims=0)  # type: ignore[misc]
        )
    for name in ("Softmax", "LogSoftmax"):
        for axis in (-1, 1, 0):
            made[f"{name} {axis}"] = graph_of(
                lambda b, name=name, axis=axis: b.op(name, b.input("x", ("m", 5, "n")), axis=axis)  # type: ignore[misc]
            )
    for exclusive in (0, 1):
        for reverse in (0, 1):
            made[f"CumSum {exclusive} {reverse}"] = graph_of(
                lambda b, e=exclusive, r=reverse: [  # type: ignore[misc]
                    b.op(
                        "CumSum",
                        b.input("x", ("m", "n", 2), t),
                        integers(b, f"a{t}", 1),
                        exclusive=e,
                        reverse=r,
                    )
                    if not b.graph.inputs
                    else b.op(
                        "CumSum",
                        b.input("z", ("m", "n"), t),
                        integers(b, f"a{t}", -1),
                        exclusive=e,
                        reverse=r,
                    )
                    for t in (INT64, FLOAT)
                ]
            )
    return made


def products() -> Mapping[str, ir.Model]:
    shapes: Mapping[str, tuple[Shape, Shape]] = {
        "matrix": (("m", "n"), ("n", 5)),
        "wide": ((6, "n"), ("n", 40)),
        "batched": (("m", 2, 5, "n"), (2, "n", 17)),
        "broadcast": ((7, "n"), ("m", "n", 3)),
        "row": (("n",), ("n", 20)),
        "column": ((3, "n"), ("n",)),
        "dot": (("n",), ("n",)),
        "rows": (("n",), ("m", "n", 4)),
        "columns": (("m", 4, "n"), ("n",)),
        "outer": (("m", 4, 1), ("m", 1, "n")),
    }
    made = {
        f"MatMul {name}": graph_of(lambda b, s=s: b.op("MatMul", b.input("x", s[0]), b.input("z", s[1])))  # type: ignore[misc]
        for name, s in shapes.items()
    }
    made["MatMul transposed"] = graph_of(
        lambda b: b.op(
            "MatMul",
            b.input("x", ("m", "n", 19)),
            b.op("Transpose", b.input("z", ("m", 6, 19)), perm=[0, 2, 1]),
        )
    )
    made["MatMul by columns"] = graph_of(
        lambda b: b.op(
            "MatMul", b.op("Transpose", b.input("x", (19, "n"))), b.op("Transpose", b.input("z", (6, 19)))
        )
    )
    for a in (0, 1):
        for c in (0, 1):
            made[f"Gemm {a} {c}"] = graph_of(
                lambda b, a=a, c=c: b.op(  # type: ignore[misc]
                    "Gemm",
                    b.input("x", (8, "n") if a else ("n", 8)),
                    b.input("z", (18, 8) if c else (8, 18)),
                    b.input("u", (18,) if a else ("n", 1)),
                    transA=a,
                    transB=c,
                    alpha=0.5,
                    beta=2.0 if a else 1.0,
                )
            )
    return made


def rotaries() -> Mapping[str, ir.Model]:
    made = {}
    for interleaved in (0, 1):
        made[f"RotaryEmbedding {interleaved}"] = graph_of(
            lambda b, i=interleaved: b.op(  # type: ignore[misc]
                "RotaryEmbedding",
                b.op("Transpose", b.input("x", ("m", "n", 2, 8)), perm=[0, 2, 1, 3]),
                b.input("c", ("m", "n", 4)),
                b.input("s", ("m", "n", 4)),
                interleaved=i,
            )
        )
        made[f"RotaryEmbedding flat {interleaved}"] = graph_of(
            lambda b, i=interleaved: b.op(  # type: ignore[misc]
                "RotaryEmbedding",
                b.input("x", ("m", "n", 24)),
                b.input("c", ("m", "n", 3)),
                b.input("s", ("m", "n", 3)),
                interleaved=i,
                num_heads=3,
                rotary_embedding_dim=6,
            )
        )
    return made


def random_trees() -> list[tuple[str, ir.Model]]:
    """Random trees of elementwise operators over broadcast, transposed and constant leaves."""
    made = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        b = Builder()
        leaves = [
            b.input("a", ("m", 3, "n")),
            b.input("b", ("n",)),
            b.input("c", ("m", 1, 1)),
            b.input("d", (3, 1)),
            b.op("Transpose", b.input("e", ("n", 3, "m")), perm=[2, 1, 0]),
            b.weight("half", np.float32(0.5)),
            b.weight("three", np.arange(3, dtype=np.float32).reshape(3, 1)),
        ]
        flag = b.op("Greater", leaves[0], leaves[1])
        pool = list(leaves)
        for _ in range(int(random.integers(3, 12))):
            name = str(
                random.choice(["Add", "Mul", "Sub", "Max", "Tanh", "Sigmoid", "Abs", "Where", "Gelu", "Min"])
            )
            args = [pool[int(random.integers(len(pool)))] for _ in range(2)]
            if name in ("Tanh", "Sigmoid", "Abs", "Gelu"):
                pool.append(b.op(name, args[0]))
            elif name == "Where":
                pool.append(b.op(name, flag, *args))
            else:
                pool.append(b.op(name, *args))
        b.output(b.op("Add", pool[-1], leaves[0]), "y")
        if seed % 3 == 0:
            b.output(b.op("Neg", pool[-2]), "z")
        made.append((f"tree {seed}", b.model()))
    return made


def indexed() -> Mapping[str, ir.Model]:
    return {
        "rows": graph_of(lambda b: b.op("Gather", b.input("x", (7, "n")), b.input("i", ("m", 2), INT64))),
        "inner": graph_of(
            lambda b: b.op(
                "Gather",
                b.op("Transpose", b.input("x", ("n", 7, 3)), perm=[2, 1, 0]),
                b.input("i", ("m",), INT32),
                axis=1,
            )
        ),
        "last": graph_of(
            lambda b: b.op("Gather", b.input("x", ("n", 7)), b.input("i", ("m",), INT64), axis=-1)
        ),
        "one": graph_of(lambda b: b.op("Gather", b.input("x", ("n", 7)), b.input("i", (), INT64), axis=1)),
        "chosen": graph_of(
            lambda b: b.op("Neg", b.op("Gather", b.input("x", ("n", 7)), integers(b, "k", -2), axis=1))
        ),
        "nd": graph_of(lambda b: b.op("GatherND", b.input("x", (7, 7, "n")), b.input("i", ("m", 2), INT64))),
        "nd batch": graph_of(
            lambda b: b.op(
                "GatherND", b.input("x", ("m", 7, "n")), b.input("i", ("m", 4, 1), INT64), batch_dims=1
            )
        ),
        "elements": graph_of(
            lambda b: b.op("GatherElements", b.input("x", ("m", 7)), b.input("i", ("m", 5), INT64), axis=1)
        ),
        "scatter": graph_of(
            lambda b: b.op(
                "ScatterElements",
                b.input("x", ("m", 7)),
                b.input("i", ("m", 3), INT64),
                b.input("u", ("m", 3)),
                axis=1,
                reduction="add",
            )
        ),
        "scatter plain": graph_of(
            lambda b: b.op(
                "ScatterElements",
                b.input("x", (7, "m")),
                b.input("i", (1, "m"), INT64),
                b.input("u", (1, "m")),
                axis=0,
            )
        ),
        "scatter nd": graph_of(
            lambda b: b.op(
                "ScatterND",
                b.input("x", (7, 7, "n")),
                b.input("i", ("m", 2), INT64),
                b.input("u", ("m", "n")),
                reduction="max",
            )
        ),
    }
