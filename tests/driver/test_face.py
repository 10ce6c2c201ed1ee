"""``miaotui.compile`` takes what the command line takes."""

from __future__ import annotations

from typing import Any

import miaotui
import pytest
from miaotui import driver
from miaotui.compiler.options import CompileOptions


def test_options_reach_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(driver), "compile", lambda model, options, **others: options)
    given: dict[str, Any] = {
        "precision": "int8", "sparsity": "heads:0.25,2:4", "rank": 0.5, "cache": "int8", "calib": "text.txt",
        "budget": 0.02, "goal": "size",
    }  # fmt: skip
    assert miaotui.compile("model", **given) == CompileOptions(**given)
    assert miaotui.compile("model") == CompileOptions()


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"sparsity": "stripes:0.5"}, "--sparsity.*stripes"),
        ({"rank": 2.0}, "--rank.*2.0"),
        ({"goal": "both"}, "--goal.*both"),
        ({"cache": "int3"}, "--cache.*int3"),
        ({"sparse": "0.5"}, "no option sparse; it has .*sparsity"),
    ],
)
def test_what_does_not_parse_is_an_option_error(given: dict[str, Any], fact: str) -> None:
    with pytest.raises(miaotui.OptionError, match=fact):
        miaotui.compile("model", **given)
