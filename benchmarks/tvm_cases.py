"""What bench_tvm_kernels.py times: kernels in TIR, and ONNX Runtime's nodes for the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
from miaotui.compiler.codegen.tvm.kernels import Cpu, Kernel, blocked, blocked_integers, chains, norms, sparse
from miaotui.compiler.codegen.tvm.kernels import math as functions
from miaotui.compiler.codegen.tvm.target import spelled
from miaotui.compiler.codegen.tvm.versions import require_tvm
from miaotui.compiler.ir.quantized import BlockedWeight
from miaotui.compiler.options import Target
from onnx import TensorProto, helper, numpy_helper

POOL = 96 << 20
"""Bytes of weights that are gone through, several times the last-level cache's: all are cold."""

Run = Callable[[], object]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """``run``: candidates by name, "onnxruntime" among them; made when it is timed, for they are large."""

    name: str
    candidates: Callable[[int], Mapping[str, Run]]


def rotated(make: Callable[[int], Run], size: int) -> Run:
    """Runs over as many copies as fill ``POOL``, one after another; ``size``: bytes of a copy's weights."""
    runs = cycle([make(seed) for seed in range(max(1, -(-POOL // size)))])
    return lambda: next(runs)()


def ort(nodes: Sequence[Any], inputs: Mapping[str, Array], weights: Mapping[str, Array], threads: int) -> Run:
    """A session of ``nodes`` that yield ``y``; inputs and outputs are bound once: kernels alone are timed."""
    graph = helper.make_graph(
        nodes, "case",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    domains = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains, ir_version=10)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    first = session.run(None, dict(inputs))[0]
    binding.bind_ortvalue_output("y", onnxruntime.OrtValue.ortvalue_from_numpy(first))
    return lambda: session.run_with_iobinding(binding)


class Tir:
    """A compiled kernel; ``bound`` gives it weights and numbers of its own."""

    def __init__(self, kernel: Kernel) -> None:
        self._tvm = require_tvm()
        target = self._tvm.target.Target(spelled(Target("cpu")))
        library = self._tvm.compile(self._tvm.IRModule({kernel.name: kernel.function}), target)
        self._call = library[kernel.name]

    def bound(self, inputs: Sequence[Array], kernel: Kernel, *shapes: tuple[int, ...]) -> Run:
        """``kernel`` is one whose function is the compiled one."""
        outputs = [np.zeros(shape, np.float32) for shape in shapes]
        arrays = [*inputs, *(w.numpy() for w in kernel.weights), *outputs]
        tensors = [self._tvm.runtime.tensor(np.ascontiguousarray(a)) for a in arrays]
        call = self._call
        return lambda: call(*tensors)


def cpu() -> Cpu:
    """What kernels know of this machine."""
    return Cpu.of(require_tvm().target.Target(spelled(Target("cpu"))))


def numbers(*shape: int, seed: int = 0) -> Array:
    """Normal float32."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def sparse_case(inputs: int, outputs: int, share: float, rows: int) -> Case:
    """MatMul with ``share`` of its blocks zero, beside ONNX Runtime's dense one."""

    def weight(seed: int) -> Array:
        kept = np.random.default_rng(seed).random((outputs // 16, inputs)) >= share
        return numbers(outputs, inputs, seed=seed) * kept.repeat(16, 0)

    def candidates(threads: int) -> Mapping[str, Run]:
        x = numbers(rows, inputs)

        def kernel(seed: int) -> Kernel:
            return sparse.matmul(ir.Tensor(weight(seed)), rows, cpu(), transposed=True)

        def dense(seed: int) -> Run:
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
            return ort([node], {"x": x}, {"w": np.ascontiguousarray(weight(seed).T)}, threads)

        code, size = Tir(kernel(0)), inputs * outputs * 4
        return {
            "onnxruntime": rotated(dense, size),
            "tvm": rotated(lambda s: code.bound([x], kernel(s), (rows, outputs)), int(size * (1 - share))),
        }

    return Case(f"sparse {share:.0%} {inputs}x{outputs}, {rows} rows", candidates)


def blocked_case(inputs: int, outputs: int, bits: int, block: int, rows: int) -> Case:
    """Weight-only products beside ONNX Runtime's float32 MatMul, and MatMulNBits with 8-bit activations."""

    def weight(seed: int) -> BlockedWeight:
        random = np.random.default_rng(seed)
        kind = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8
        codes = random.integers(-(1 << bits - 1), 1 << bits - 1, (outputs, inputs)).astype(np.int8)
        scale = random.random((outputs, inputs // block)).astype(np.float16).astype(np.float32)
        return BlockedWeight(ir.Tensor(codes.astype(kind.numpy())), ir.Tensor(scale), None, None, block)

    def candidates(threads: int) -> Mapping[str, Run]:
        x, size = numbers(rows, inputs), inputs * outputs * bits // 8
        makers = {"tvm": blocked.matmul, "tvm, 8-bit activations": blocked_integers.matmul_integers}
        if blocked_integers.declines(weight(0), cpu()):
            del makers["tvm, 8-bit activations"]

        def dense(seed: int) -> Run:
            node = helper.make_node("MatMul", ["x", "w"], ["y"])
            return ort([node], {"x": x}, {"w": numbers(inputs, outputs, seed=seed)}, threads)

        def nbits(seed: int) -> Run:
            made = weight(seed)
            codes: Array = (made.data.numpy().astype(np.int16) + (1 << bits - 1)).astype(np.uint8)
            codes = codes[:, ::2] | codes[:, 1::2] << 4 if bits == 4 else codes
            weights = {"w": codes.reshape(outputs, inputs // block, -1), "s": made.scale.numpy().reshape(-1)}
            node = helper.make_node(
                "MatMulNBits", ["x", "w", "s"], ["y"], domain="com.microsoft",
                K=inputs, N=outputs, bits=bits, block_size=block, accuracy_level=4,
            )  # fmt: skip
            return ort([node], {"x": x}, weights, threads)

        runs = {
            "onnxruntime": rotated(dense, inputs * outputs * 4),
            "MatMulNBits, 8-bit activations": rotated(nbits, size),
        }
        for name, make in makers.items():
            code = Tir(make(weight(0), rows, cpu()))

            def bound(seed: int, code: Tir = code, make: Any = make) -> Run:
                return code.bound([x], make(weight(seed), rows, cpu()), (rows, outputs))

            runs[name] = rotated(bound, size)
        return runs

    return Case(f"int{bits}/{block} {inputs}x{outputs}, {rows} rows", candidates)


def row_cases(rows: int, columns: int) -> Iterator[Case]:
    """Normalizations and chains over [rows, columns]; no weights to speak of, so nothing is rotated."""
    x, other, scale = numbers(rows, columns), numbers(rows, columns, seed=1), numbers(columns, seed=2)
    shape = (rows, columns)

    def case(
        name: str,
        nodes: Sequence[Any],
        given: Mapping[str, Array],
        kernel: Callable[[], Kernel],
        outputs: int = 1,
    ) -> Case:
        def candidates(threads: int) -> Mapping[str, Run]:
            made = kernel()
            run = Tir(made).bound(list(given.values()), made, *(shape,) * outputs)
            return {"onnxruntime": ort(nodes, given, {}, threads), "tvm": run}

        return Case(f"{name} {rows}x{columns}", candidates)

    node = helper.make_node
    normed: dict[str, Any] = {"epsilon": 1e-5}
    yield case(
        "Add, LayerNorm",
        [node("Add", ["x", "s"], ["t"]), node("LayerNormalization", ["t", "w", "b"], ["y"], **normed)],
        {"x": x, "s": other, "w": scale, "b": scale},
        lambda: norms.layer_norm(rows, columns, cpu(), skip=True, **normed), 2,
    )  # fmt: skip
    yield case(
        "RMSNorm", [node("RMSNormalization", ["x", "w"], ["y"], **normed)], {"x": x, "w": scale},
        lambda: norms.rms_norm(rows, columns, cpu(), **normed),
    )  # fmt: skip
    yield case(
        "softmax", [node("Softmax", ["x"], ["y"])], {"x": x}, lambda: norms.softmax(rows, columns, cpu())
    )
    yield case(
        "Gelu", [node("Gelu", ["x"], ["y"])], {"x": x},
        lambda: chains.elementwise("gelu", ["whole"], functions.gelu, rows, columns, cpu()),
    )  # fmt: skip
    yield case(
        "SiLU·mul",
        [node("Sigmoid", ["x"], ["g"]), node("Mul", ["x", "g"], ["h"]), node("Mul", ["h", "s"], ["y"])],
        {"x": x, "s": other},
        lambda: chains.elementwise(
            "silu_mul", ["whole", "whole"], lambda a, b: functions.silu(a) * b, rows, columns, cpu()
        ),
    )


def cases() -> list[Case]:
    """All, in the table's order."""
    shapes = ((768, 3072), (3072, 768))
    found = [sparse_case(k, n, share, m) for m in (1, 8, 128) for share in (0.8, 0.9) for k, n in shapes]
    found += [
        blocked_case(k, n, bits, 32, m)
        for m in (1, 8)
        for bits in (4, 8)
        for k, n in ((2048, 5632), (5632, 2048), (576, 1536))
    ]
    for rows, columns in ((1, 2048), (128, 768), (1536, 128), (512, 3072)):
        found += row_cases(rows, columns)
    return found
