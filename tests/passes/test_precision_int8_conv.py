"""quantize-activations on convolutions: codes all the way, per channel, groups, residuals, declines."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.ir.builder import Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.program import Program
from miaotui.passes.base import PassContext
from miaotui.passes.precision.activations import QuantizeActivations
from support.numerics import histograms
from support.rewriting import Arrays, operators, ort_run, reasons, run_pass

RNG = np.random.default_rng(8)


def kernel(out: int, inner: int, size: int) -> np.ndarray[Any, Any]:
    """Channels of very different size: one scale for all would lose the small ones."""
    sizes = np.exp(RNG.standard_normal((out, 1, 1, 1)) * 1.5)
    return np.asarray(RNG.standard_normal((out, inner, size, size)) * sizes / size)


def net(groups: int = 1, pool: str = "GlobalAveragePool") -> Program:
    """Conv, ReLU, MaxPool, a residual of two more, a pool: what a CNN is made of."""
    b = Builder()
    x = b.input("x", ("batch", 4, 12, 12))
    y = b.op("Conv", x, b.weight("w0", kernel(8, 4, 3)), b.weight("b0", RNG.standard_normal(8)), pads=[1] * 4)
    y = b.op("MaxPool", b.op("Relu", y), kernel_shape=[2, 2], strides=[2, 2])
    z = b.op("Conv", y, b.weight("w1", kernel(8, 8 // groups, 3)), pads=[1] * 4, group=groups)
    z = b.op("Clip", z, b.weight("low", np.array(0.0)), b.weight("high", np.array(6.0)))
    z = b.op("Conv", z, b.weight("w2", kernel(8, 8, 1)), b.weight("b2", RNG.standard_normal(8)))
    y = b.op("Relu", b.op("Add", y, z))
    b.output(b.op(pool, y), "y")
    return b.program()


def context(*cases: Arrays) -> PassContext:
    return PassContext(histograms=histograms(*cases))


def images(batch: int = 2) -> Arrays:
    return {"x": RNG.standard_normal((batch, 4, 12, 12)).astype(np.float32)}


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("chosen", ["minmax", "percentile"])
def test_stays_near_float32_and_runs_as_integers(groups: int, chosen: str) -> None:
    program, case = net(groups), images(8)
    wanted = evaluate(program.main, case)["y"]
    result = run_pass(QuantizeActivations(range=chosen), program, context(case))
    assert result.changed == 6, reasons(result)
    got = evaluate(program.main, case)["y"]
    size = np.abs(wanted).max()
    assert 1e-5 * size < np.abs(got - wanted).max() < 0.06 * size
    assert np.abs(ort_run(program, case)["y"] - got).max() < 0.02 * size
    assert operators(program)["Conv"] == 3


def test_entropy_costs_less_than_it_clips() -> None:
    """It trades the few largest values for finer steps: near in the mean, not in the maximum."""
    program, case = net(), images(8)
    wanted = evaluate(program.main, case)["y"].ravel()
    run_pass(QuantizeActivations(range="entropy"), program, context(case))
    got = evaluate(program.main, case)["y"].ravel()
    assert got @ wanted / np.linalg.norm(got) / np.linalg.norm(wanted) > 0.95


def test_each_output_channel_has_its_own_step() -> None:
    program, case = net(groups=2), images()
    array = program.main.graph.initializers["w1"].const_value
    assert array is not None
    weight = array.numpy()
    run_pass(QuantizeActivations(), program, context(case))
    found = program.main.graph.initializers
    codes, steps = (found[f"w1.{part}"].const_value.numpy() for part in ("data", "scale"))  # type: ignore[union-attr]
    assert steps.shape == (8,)
    np.testing.assert_allclose(steps, np.abs(weight).max((1, 2, 3)) / 127, rtol=1e-6)
    assert np.abs(codes * steps[:, None, None, None] - weight).max((1, 2, 3)) == pytest.approx(
        steps / 2, rel=0.3
    )


def test_bias_has_the_steps_of_its_products() -> None:
    program, case = net(), images()
    run_pass(QuantizeActivations(), program, context(case))
    found = {k: v.const_value.numpy() for k, v in program.main.graph.initializers.items() if v.const_value}
    np.testing.assert_allclose(found["b0.scale"], found["w0.scale"] * found["x.step"], rtol=1e-6)
    assert found["b0.data"].dtype == np.int32


def test_onnxruntime_fuses_every_convolution(tmp_path: Any) -> None:
    import onnx
    import onnx_ir as ir
    import onnxruntime

    program, case = net(), images()
    run_pass(QuantizeActivations(), program, context(case))
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(tmp_path / "fused.onnx")
    settings.log_severity_level = 3
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    onnxruntime.InferenceSession(
        ir.to_proto(program.main).SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("QLinearConv") == 3, kinds
    assert kinds.count("QLinearAdd") == 1, kinds
    assert "Conv" not in kinds


def test_declines_name_the_reason() -> None:
    program = net()
    assert "was not measured" in reasons(run_pass(QuantizeActivations(), program))
    assert "is to be kept" in reasons(run_pass(QuantizeActivations(keep=("w1",)), program, context(images())))
    assert run_pass(QuantizeActivations(mode="dynamic"), net(), context(images())).changed == 0


def test_an_output_of_the_model_stays_float32() -> None:
    b = Builder()
    y = b.op("Conv", b.input("x", ("batch", 4, 12, 12)), b.weight("w", kernel(8, 4, 3)))
    b.output(y, "y")
    program, case = b.program(), images()
    run_pass(QuantizeActivations(), program, context(case))
    assert program.main.graph.outputs[0].producer().op_type == "Conv"  # type: ignore[union-attr]
    assert operators(program)["QuantizeLinear"] == 1
