"""Inputs formed like the last accepted ones pass without a full check; anything else is checked again."""

from __future__ import annotations

from pathlib import Path

import miaotui
import numpy as np
import onnx_ir as ir
import pytest
from miaotui.compiler.ir.builder import Builder


@pytest.fixture
def doubled(tmp_path: Path) -> miaotui.Executable:
    b = Builder()
    x = b.input("x", ("batch", 4))
    b.output(b.op("Add", x, x), "y")
    ir.save(b.model(), tmp_path / "doubled.onnx")
    return miaotui.compile(tmp_path / "doubled.onnx", timing=0)


def test_wrong_inputs_are_found_after_right_ones(doubled: miaotui.Executable) -> None:
    good = np.ones((2, 4), np.float32)
    for wrong in (good.astype(np.float64), good[:, :3], good[0]):
        for _ in range(2):
            np.testing.assert_array_equal(doubled.run({"x": good})["y"], 2 * good)
        with pytest.raises(miaotui.InputError):
            doubled.run({"x": wrong})
        with pytest.raises(miaotui.InputError):
            doubled.run({"z": good})


def test_equal_form_but_other_layout_gives_the_right_result(doubled: miaotui.Executable) -> None:
    wide = np.arange(24, dtype=np.float32).reshape(4, 6)
    for array in (np.ascontiguousarray(wide[:, :4]), wide[:, :4], np.asfortranarray(wide[:, :4])):
        np.testing.assert_array_equal(doubled.run({"x": array})["y"], 2 * array)
