"""Linear layers with float weights against their float64 reference: formats, sizes, fusions, threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from miaotui.compiler.codegen.native.pack import PackedWeight
from miaotui.compiler.codegen.native.pack.floats import pack_floats, pack_tensors
from miaotui.compiler.codegen.native.pack.sparse import is_sparse, pack_sparse
from miaotui.compiler.dialect.linear import ACTIVATION_DTYPE, ACTIVATIONS, linear
from native.float_cases import Array, Case, Kernels

Pack: TypeAlias = Callable[[Sequence[ir.TensorProtocol]], PackedWeight]

DTYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def tensor(array: Array, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Tensor:
    return ir.Tensor(array.astype(dtype.numpy()), dtype=dtype)


def expected(case: Case) -> Array:
    """The operator's own reference on the weights as stored, in float64."""
    layers: list[Array | None] = []
    for weight, bias in zip(case.weights, case.biases, strict=True):
        layers += [weight.numpy().astype(np.float64), bias]
    (y,) = linear(
        case.x.astype(np.float64),
        case.norm_scale,
        case.norm_bias,
        case.residual,
        *layers,
        norm=case.norm,
        epsilon=case.epsilon,
        activation=case.activation,
        gated=int(case.gated),
    )
    return y


def packed(case: Case, pack: Pack = pack_tensors) -> list[PackedWeight]:
    return [pack(case.weights)] if case.gated else [pack([w]) for w in case.weights]


def bound(case: Case) -> float:
    """The greatest error: float32 sums of all columns, of numbers of order one.

    Where a mean is taken away, what is left is as exact as the numbers were.
    """
    spread = 1.0
    if case.norm == "layer":
        spread = max(1.0, float((np.abs(case.x).max(1) / np.maximum(case.x.std(1), 1e-3)).max()))
    return 3e-6 * max(1, np.sqrt(case.x.shape[1])) * spread


def make(
    count: int,
    columns: int,
    rows: tuple[int, ...],
    seed: int = 0,
    dtype: ir.DataType = ir.DataType.FLOAT,
    *,
    norm: str = "",
    activation: str = "",
    gated: bool = False,
    biased: bool = True,
    residual: bool = True,
    gap: int = 0,
) -> Case:
    """Numbers so that outputs are of order one."""
    rng = np.random.default_rng(seed)

    def floats(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    width = rows[0] if gated else sum(rows)
    return Case(
        floats(count, columns + gap)[:, :columns],
        [tensor(floats(r, columns) / np.sqrt(columns), dtype) for r in rows],
        [floats(r) if biased else None for r in rows],
        floats(columns) if norm else None,
        floats(columns) if norm == "layer" else None,
        floats(count, width + gap)[:, :width] if residual else None,
        norm=norm,
        activation=activation,
        gated=gated,
    )


def check(kernels: Kernels, case: Case, threads: int = 1, pack: Pack = pack_tensors) -> Array:
    y = kernels.linear(case, packed(case, pack), threads)
    wanted = expected(case)
    assert np.abs(y - wanted).max() <= bound(case) * max(1, np.abs(wanted).max())
    return y


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@given(
    count=st.integers(1, 40),
    columns=st.integers(1, 90),
    rows=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    norm=st.sampled_from(["", "rms", "layer"]),
    residual=st.booleans(),
    biased=st.booleans(),
    gap=st.integers(0, 3),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_equals_the_reference_at_odd_sizes(
    kernels: Kernels,
    dtype: ir.DataType,
    count: int,
    columns: int,
    rows: list[int],
    norm: str,
    residual: bool,
    biased: bool,
    gap: int,
    seed: int,
) -> None:
    case = make(
        count, columns, tuple(rows), seed, dtype, norm=norm, residual=residual, biased=biased, gap=gap
    )
    check(kernels, case, 1 + seed % 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 13, 14, 15, 29, 167, 170, 337])
def test_long_rows_and_large_batches(kernels: Kernels, dtype: ir.DataType, count: int) -> None:
    columns = 1537 if count < 20 else 530
    check(kernels, make(count, columns, (65,), count, dtype, norm="rms" if count % 2 else ""))


@pytest.mark.parametrize("activation", [a for a in ACTIVATIONS if a])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 19])
def test_activations_and_gates(kernels: Kernels, activation: str, gated: bool, count: int) -> None:
    rows = (37, 37) if gated else (37,)
    for dtype in DTYPES:
        check(kernels, make(count, 51, rows, count, dtype, norm="rms", activation=activation, gated=gated), 2)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("count", [1, 3, 30, 200])
def test_no_result_depends_on_the_number_of_threads(kernels: Kernels, gated: bool, count: int) -> None:
    case = make(count, 600, (129, 129), count, norm="layer", activation="silu", gated=gated)
    alone = check(kernels, case)
    for threads in (2, 3, 8):
        assert np.array_equal(kernels.linear(case, packed(case), threads), alone)


def test_no_row_depends_on_the_rows_beside_it(kernels: Kernels) -> None:
    case = make(33, 700, (70,), norm="rms", residual=False)
    together = kernels.linear(case, packed(case))
    for row in (0, 14, 32):
        single = Case(case.x[row : row + 1], case.weights, case.biases, case.norm_scale, norm="rms")
        assert np.array_equal(kernels.linear(single, packed(single))[0], together[row])


def test_output_may_lie_over_its_residual(kernels: Kernels) -> None:
    case = make(20, 64, (50,))
    assert case.residual is not None
    y = kernels.linear(case, packed(case))
    over = kernels.linear(case, packed(case), over_residual=True)
    assert np.array_equal(y, over)


def test_infinities_and_nan_come_through(kernels: Kernels) -> None:
    case = make(5, 40, (40,), residual=False)
    x = case.x.copy()
    x[1, 7], x[3, 39] = np.inf, np.nan
    y = kernels.linear(Case(x, case.weights, case.biases), packed(case))
    assert np.isfinite(y[[0, 2, 4]]).all()
    assert np.isinf(y[1]).all()
    assert np.isnan(y[3]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.name)
@pytest.mark.parametrize("columns", [1, 16, 33])
def test_rows_unpack_to_what_was_packed(kernels: Kernels, dtype: ir.DataType, columns: int) -> None:
    weight = tensor(np.random.default_rng(0).standard_normal((35, columns)), dtype)
    done = pack_tensors([weight])
    for row in (0, 15, 16, 34):
        assert np.array_equal(kernels.row(done, row), weight.numpy()[row].astype(np.float32))


def test_half_precision_keeps_subnormals_and_infinity(kernels: Kernels) -> None:
    values = np.array([[6e-8, -6e-5, 65504, np.inf, -np.inf, 0, 1.5]], np.float16)
    done = pack_tensors([ir.Tensor(values)])
    assert np.array_equal(kernels.row(done, 0), values[0].astype(np.float32))


def test_a_cast_weight_is_packed_as_it_is_stored() -> None:
    stored = ir.Value(name="w", const_value=tensor(np.ones((3, 5)), ir.DataType.FLOAT16))
    stored.shape, stored.dtype = ir.Shape([3, 5]), ir.DataType.FLOAT16
    ir.Graph([], [], nodes=[], initializers=[stored])
    node = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
    wide = node.outputs[0]
    wide.shape, wide.dtype = ir.Shape([3, 5]), ir.DataType.FLOAT
    done = pack_floats(wide)
    assert (done.format, done.rows, done.columns, done.size) == ("WEIGHT_F16", 3, 5, 16 * 5 * 2)


def pruned(case: Case, density: float, seed: int = 0) -> Case:
    """The weights without most blocks of 16 rows by 1 column."""
    rng = np.random.default_rng(seed)
    weights = []
    for weight in case.weights:
        array = weight.numpy()
        kept = rng.random((-(-array.shape[0] // 16), array.shape[1])) < density
        weights.append(tensor(array * kept.repeat(16, 0)[: array.shape[0]]))
    return replace(case, weights=weights)


@given(
    count=st.integers(1, 40),
    columns=st.integers(1, 90),
    rows=st.integers(1, 70),
    gated=st.booleans(),
    density=st.sampled_from([0.0, 0.05, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_sparse_weights_equal_the_reference_at_odd_sizes(
    kernels: Kernels, count: int, columns: int, rows: int, gated: bool, density: float, seed: int
) -> None:
    case = make(count, columns, (rows, rows), seed, norm="rms", activation="relu", gated=gated)
    check(kernels, pruned(case, density, seed), 1 + seed % 3, pack_sparse)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 15, 170, 337])
def test_sparse_weights_give_the_bits_of_dense_ones(kernels: Kernels, count: int) -> None:
    """Leaving out what is zero changes no sum."""
    case = pruned(make(count, 1100, (100,), count), 0.1)
    sparse = check(kernels, case, 1, pack_sparse)
    assert np.array_equal(sparse, kernels.linear(case, packed(case)))
    for threads in (2, 3, 8):
        assert np.array_equal(kernels.linear(case, packed(case, pack_sparse), threads), sparse)


@pytest.mark.parametrize("columns", [1, 512, 513, 1100])
def test_rows_of_sparse_weights_unpack(kernels: Kernels, columns: int) -> None:
    (weight,) = pruned(make(1, columns, (35,)), 0.3).weights
    done = pack_sparse([weight])
    for row in (0, 15, 16, 34):
        assert np.array_equal(kernels.row(done, row), weight.numpy()[row])


def test_sparse_is_chosen_by_density_and_dtype() -> None:
    case = make(1, 400, (64,))
    assert not is_sparse(case.weights)
    assert not is_sparse(pruned(case, 0.9).weights)
    assert is_sparse(pruned(case, 0.5).weights)
    assert not is_sparse([*pruned(case, 0.5).weights, *case.weights])
    assert not is_sparse([tensor(np.zeros((64, 400)), ir.DataType.FLOAT16)])


def rounding(case: Case) -> Case:
    """The same with weights that let their activations be rounded as they are."""
    weights = [tensor(w.numpy(), ir.DataType.BFLOAT16) for w in case.weights]
    for weight in weights:
        weight.metadata_props[ACTIVATION_DTYPE] = "BFLOAT16"
    return replace(case, weights=weights)


@given(
    count=st.integers(4, 40),
    columns=st.integers(1, 90),
    rows=st.integers(1, 70),
    gated=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_bf16_products_equal_the_reference_on_rounded_activations(
    kernels: Kernels, count: int, columns: int, rows: int, gated: bool, seed: int
) -> None:
    case = rounding(make(count, columns, (rows, rows), seed, activation="relu", gated=gated))
    y = kernels.linear(case, packed(case), 1 + seed % 3)
    if kernels.multiplies_bf16:
        case = replace(case, x=case.x.astype(ir.DataType.BFLOAT16.numpy()).astype(np.float32))
    wanted = expected(case)
    assert np.abs(y - wanted).max() <= bound(case) * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("count", [1, 3, 4, 30, 337])
def test_bf16_products_of_normed_rows_stay_near(kernels: Kernels, count: int) -> None:
    case = rounding(make(count, 1100, (100,), count, norm="rms"))
    y = kernels.linear(case, packed(case))
    few = count < 4 or not kernels.multiplies_bf16
    assert np.abs(y - expected(case)).max() < (1e-4 if few else 0.05)
    for threads in (2, 3, 8):
        assert np.array_equal(kernels.linear(case, packed(case), threads), y)


def test_activations_are_rounded_only_where_all_weights_allow_it(kernels: Kernels) -> None:
    case = make(8, 300, (40, 40), dtype=ir.DataType.BFLOAT16)
    both = rounding(case)
    mixed = replace(case, weights=[both.weights[0], case.weights[1]])
    assert [p.format for p in packed(mixed)] == ["WEIGHT_BF16_BOTH", "WEIGHT_BF16"]
    check(kernels, mixed)


def test_bf16_products_keep_nan_and_infinity(kernels: Kernels) -> None:
    case = rounding(make(5, 41, (40,), residual=False))
    x = case.x.copy()
    x[1, 7], x[3, 40] = np.inf, np.nan
    y = kernels.linear(replace(case, x=x), packed(case))
    assert np.isfinite(y[[0, 2, 4]]).all()
    assert np.isinf(y[1]).all()
    assert np.isnan(y[3]).all()
