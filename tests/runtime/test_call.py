"""Calling an executable as its source is called: every argument structure there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from miaotui.compiler.errors import InputError
from miaotui.compiler.program import Call, TensorSpec
from miaotui.runtime.call import default_call, flatten, unflatten

NESTED = Call(
    parameters={
        "ids": "ids",
        "mask": None,
        "state": {"tuple": [["k", "v"], {"dict": {"position": "p", "unused": None}}]},
    },
    result={"dict": {"logits": "y", "cache": {"tuple": ["k1", "v1"]}, "hidden": None, "list": ["y"]}},
)
ARGS: tuple[Any, ...] = (1, None, ([2, 3], {"position": 4}))


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (ARGS, {}),
        (ARGS[:1], {"state": ARGS[2]}),
        ((), {"state": ARGS[2], "ids": 1, "mask": None}),
        ((1, None, [(2, 3), {"position": 4, "unused": None}]), {}),
    ],
)
def test_arguments_are_found_by_position_and_by_name(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert flatten(NESTED, args, kwargs) == {"ids": 1, "k": 2, "v": 3, "p": 4}


@pytest.mark.parametrize(
    ("args", "kwargs", "facts"),
    [
        ((), {}, ["argument 'ids': is missing", "'state': is no sequence of 2"]),
        ((*ARGS, 5), {}, ["takes 3 arguments, got 4"]),
        (ARGS, {"ids": 1}, ["'ids': is given twice"]),
        (ARGS, {"idz": 1}, ["'idz': does not exist; its parameters are ids, mask, state"]),
        ((1, 9, ARGS[2]), {}, ["'mask': was absent when the model was compiled"]),
        ((1, None, ([2], 4)), {}, ["'state'[0]: is no sequence of 2", "'state'[1]: is no dict"]),
        ((1, None, ([2, 3], {"position": 4, "extra": 5})), {}, ["'state'[1]['extra']: does not exist"]),
    ],
)  # fmt: skip
def test_every_wrong_argument_is_named_at_once(
    args: tuple[Any, ...], kwargs: dict[str, Any], facts: list[str]
) -> None:
    with pytest.raises(InputError) as caught:
        flatten(NESTED, args, kwargs)
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_result_has_the_sources_structure() -> None:
    y, k, v = np.ones(1), np.ones(2), np.ones(3)
    result = unflatten(NESTED, {"y": y, "k1": k, "v1": v})
    assert result["logits"] is y and result["hidden"] is None
    assert isinstance(result["cache"], tuple) and result["cache"] == (k, v)
    assert result["list"] == [y]


def test_torch_results_share_memory() -> None:
    torch = pytest.importorskip("torch")
    y = np.ones((2, 3), np.float32)
    result = unflatten(Call({"x": "x"}, "y", "torch"), {"y": y})
    assert isinstance(result, torch.Tensor)
    result[0, 0] = 7
    assert y[0, 0] == 7


def test_torch_bfloat16_results() -> None:
    torch = pytest.importorskip("torch")
    import ml_dtypes

    result = unflatten(Call({}, "y", "torch"), {"y": np.array([1.5], ml_dtypes.bfloat16)})
    assert result.dtype == torch.bfloat16 and result.tolist() == [1.5]


def test_sources_without_a_convention_take_inputs_by_name_or_position() -> None:
    spec = [TensorSpec(name, 1, ("n",)) for name in "abc"]  # type: ignore[arg-type]
    call = default_call(spec[:2], spec[2:])
    assert flatten(call, (1,), {"b": 2}) == {"a": 1, "b": 2}
    assert unflatten(call, {"c": np.ones(1)}).tolist() == [1]
    assert sorted(unflatten(default_call(spec[:1], spec[1:]), {"b": np.ones(1), "c": np.ones(1)})) == [
        "b",
        "c",
    ]
