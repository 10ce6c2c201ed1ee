"""Example inputs fit the model: indices, masks, positions, sizes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.errors import InputError
from miaotui.compiler.ir.builder import BOOL, INT64, Builder
from miaotui.compiler.ir.evaluate import evaluate
from miaotui.compiler.ir.examples import example_inputs
from miaotui.compiler.ir.sizes import resolve_sizes
from miaotui.compiler.program import DimRange, Program


def encoder(**dims: DimRange) -> Program:
    """Ids and token types index tables, positions a third one after an offset; the mask is cast."""
    b = Builder()
    ids = b.input("input_ids", ("batch", "sequence"), INT64)
    kinds = b.input("token_type_ids", ("batch", "sequence"), INT64)
    places = b.input("position_ids", ("batch", "sequence"), INT64)
    mask = b.input("attention_mask", ("batch", "sequence"), INT64)
    flat = b.op("Cast", b.op("Reshape", ids, b.weight("flat", np.asarray([-1]))), to=int(ir.DataType.INT32))
    words = b.op("Gather", b.weight("words", np.ones((7, 4))), flat)
    shifted = b.op("Add", places, b.weight("two", np.asarray(2)))
    b.output(words, "words_out")
    b.output(b.op("Gather", b.weight("kinds", np.ones((2, 4))), kinds), "kinds_out")
    b.output(b.op("Gather", b.weight("places", np.ones((9, 4))), shifted), "places_out")
    b.output(b.op("Cast", b.op("Unsqueeze", mask, b.weight("axis", np.asarray([1]))), to=1), "mask_out")
    return b.program(**dims)


def test_indices_stay_inside_their_tables() -> None:
    program = encoder()
    for seed in range(20):
        inputs = example_inputs(program, seed=seed)
        assert inputs["input_ids"].min() >= 0 and inputs["input_ids"].max() < 7
        assert inputs["token_type_ids"].max() < 2
        assert inputs["position_ids"].max() < 9 - 2
        evaluate(program.main, inputs)


def test_indices_reach_the_whole_table() -> None:
    assert set(example_inputs(encoder(), sizes={"sequence": 500})["input_ids"].ravel()) == set(range(7))


def test_masks_are_ones_and_positions_count_up() -> None:
    inputs = example_inputs(encoder(), sizes={"sequence": 5})
    assert (inputs["attention_mask"] == 1).all()
    np.testing.assert_array_equal(inputs["position_ids"], [[0, 1, 2, 3, 4]] * 2)


def test_the_same_symbol_has_one_size() -> None:
    assert {a.shape for a in example_inputs(encoder()).values()} == {(2, 16)}


def test_sizes_come_from_the_caller_then_from_the_ranges() -> None:
    program = encoder(sequence=DimRange(1, 4), batch=DimRange(3, None))
    assert resolve_sizes(program) == {"batch": 3, "sequence": 4}
    assert resolve_sizes(program, sizes={"sequence": 2}) == {"batch": 3, "sequence": 2}


def test_every_size_out_of_range_is_reported() -> None:
    program = encoder(sequence=DimRange(1, 4), batch=DimRange(3, None))
    with pytest.raises(InputError) as caught:
        example_inputs(program, sizes={"sequence": 5, "batch": 2, "depth": 1})
    assert str(caught.value).splitlines() == [
        "dimension 'depth': is none of this entry's; it has batch, sequence",
        "dimension 'sequence': size 5 is outside 1..4",
        "dimension 'batch': size 2 is outside 3..",
    ]


def test_a_dimension_may_be_an_expression_of_others() -> None:
    b = Builder()
    b.output(b.op("Relu", b.input("past", ("batch", "past_len"))), "p")
    b.output(b.op("Relu", b.input("new", ("batch", "seq_len"))), "n")
    b.output(b.op("Relu", b.input("mask", ("batch", "past_len + seq_len"))), "m")
    inputs = example_inputs(b.program(), sizes={"past_len": 3, "seq_len": 4})
    assert inputs["mask"].shape == (2, 7)


def test_the_same_seed_gives_the_same_inputs() -> None:
    first, again, other = (example_inputs(encoder(), seed=s)["input_ids"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


@pytest.mark.parametrize(
    "dtype",
    [d for d in ir.DataType if d != ir.DataType.UNDEFINED],
    ids=lambda d: d.name,
)
def test_every_dtype_has_examples(dtype: ir.DataType) -> None:
    b = Builder()
    b.output(b.op("Identity", b.input("x", (2, 3), dtype)), "y")
    array = example_inputs(b.program())["x"]
    assert array.shape == (2, 3)
    assert array.dtype == (np.object_ if dtype == ir.DataType.STRING else dtype.numpy())


def test_bools_are_true_and_images_are_square() -> None:
    b = Builder()
    b.output(b.op("Not", b.input("keep", ("n",), BOOL)), "y")
    b.output(b.op("Relu", b.input("image", ("n", 3, "h", "w"))), "z")
    inputs = example_inputs(b.program())
    assert inputs["keep"].all() and inputs["image"].shape == (2, 3, 64, 64)
