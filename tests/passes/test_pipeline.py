"""The pipeline: order and levels, enabling and disabling by name, every bad spec named at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.options import CompileOptions, Target
from miaotui.compiler.program import Program
from miaotui.passes import pipeline as pipelines
from miaotui.passes.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class Step(Pass):
    def run(self, program: Program, context: PassContext) -> PassResult:
        return PassResult()


@dataclass(frozen=True)
class Clean(Step):
    name: ClassVar[str] = "clean"


@dataclass(frozen=True)
class Raise(Step):
    name: ClassVar[str] = "raise-gelu"


@dataclass(frozen=True)
class Fuse(Step):
    name: ClassVar[str] = "fuse-qkv"
    least: int = 2


@dataclass(frozen=True)
class Derive(Step):
    name: ClassVar[str] = "derive-cache"


@dataclass(frozen=True)
class Half(Step):
    name: ClassVar[str] = "convert-fp16"


@dataclass(frozen=True)
class Weights(Step):
    name: ClassVar[str] = "quantize-weights"


@dataclass(frozen=True)
class Lower(Step):
    name: ClassVar[str] = "lower-attention"


@dataclass(frozen=True)
class Legalize(Step):
    name: ClassVar[str] = "legalize"
    optional: ClassVar[bool] = False


@dataclass(frozen=True)
class LowerCuda(Step):
    name: ClassVar[str] = "lower-cuda"


@pytest.fixture(autouse=True)
def rooms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, passes in (
        ("CLEANUP", (Clean(),)), ("RAISING", (Raise(),)), ("SPARSITY", ()), ("LOWRANK", ()),
        ("INCREMENTAL", (Derive(),)),
        ("FUSION", (Fuse(),)), ("PRECISION", (Half(),)),
        ("BF16", ()), ("STORED", {"fp16": (), "bf16": ()}), ("WEIGHTS", {"int8": (Weights(),)}),
        ("INTEGERS", (Weights(),)),
        ("LOWERING", {"cpu": (Lower(), Legalize()), "cuda": (LowerCuda(),)}),
        ("TRIED", {}),
    ):  # fmt: skip
        monkeypatch.setattr(pipelines, name, passes)
    yield


def names(**options: object) -> list[str]:
    return [step.name for step in pipelines.pipeline(CompileOptions(**options))]  # type: ignore[arg-type]


def test_full_level_runs_every_room_in_order() -> None:
    assert names() == [
        "clean", "raise-gelu", "clean", "derive-cache", "fuse-qkv", "lower-attention", "legalize", "clean",
    ]  # fmt: skip


def test_level_1_cleans_up_and_keeps_what_the_backend_needs() -> None:
    assert names(opt=1) == ["clean", "derive-cache", "legalize"]


def test_level_0_keeps_what_the_backend_needs() -> None:
    assert names(opt=0) == ["legalize"]


def test_fp16_conversion_stands_between_fusion_and_the_target_s_lowering() -> None:
    asked = {"precision": "fp16", "target": Target("cuda")}
    assert names(**asked)[-4:] == ["fuse-qkv", "convert-fp16", "lower-cuda", "clean"]


def test_enabling_adds_a_pass_at_its_place() -> None:
    assert names(opt=1, enable=("fuse-qkv",)) == ["clean", "derive-cache", "fuse-qkv", "legalize"]


def test_enabling_sets_options() -> None:
    fuse = pipelines.pipeline(CompileOptions(enable=("fuse-qkv{least=3}",)))[4]
    assert fuse == Fuse(least=3)


def test_disabling_removes_a_pass_everywhere() -> None:
    assert "clean" not in names(disable=("clean",))


def test_every_bad_spec_is_named_at_once() -> None:
    with pytest.raises(OptionError) as raised:
        names(enable=("fuse-qvk", "fuse-qkv{most=1}", "{"), disable=("legalize", "clean{x=1}"))
    text = str(raised.value)
    assert len(raised.value.problems) == 5
    assert "did you mean fuse-qkv?" in text
    assert "no option 'most'" in text
    assert "needed for a right result" in text


def test_enabling_and_disabling_the_same_pass_is_a_contradiction() -> None:
    with pytest.raises(OptionError, match="both enabled and disabled"):
        names(enable=("clean",), disable=("clean",))


def test_enabling_another_target_s_pass_is_refused() -> None:
    with pytest.raises(OptionError, match="not for --target cpu"):
        names(enable=("lower-cuda",))


def test_all_passes_names_each_pass_once() -> None:
    assert list(pipelines.all_passes()) == [
        "clean", "raise-gelu", "quantize-weights", "derive-cache", "fuse-qkv", "convert-fp16",
        "lower-attention", "legalize", "lower-cuda",
    ]  # fmt: skip
