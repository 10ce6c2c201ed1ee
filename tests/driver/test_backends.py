"""Which backend a compile takes, and what it says of the others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
import pytest
import torch
from miaotui import driver
from miaotui.cli.app import app
from miaotui.compiler.codegen.native.backend import NativeBackend
from miaotui.compiler.errors import ToolError, UnsupportedError
from miaotui.driver import candidates, choice
from miaotui.runtime.timing import Timings
from typer.testing import CliRunner


class Encoder(torch.nn.Module):
    """A transformer's layer over vectors, the smallest that is one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = torch.nn.LayerNorm(32)
        self.qkv, self.out = torch.nn.Linear(32, 96), torch.nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        parts = self.qkv(self.norm(x)).view(batch, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, 32))


X = np.random.default_rng(0).standard_normal((2, 5, 32)).astype(np.float32)
DIMS = {"batch": "1..8", "tokens": "1..64"}


def compiled(folder: Path, **options: Any) -> miaotui.Executable:
    return miaotui.compile(Encoder().eval(), inputs=(torch.from_numpy(X),), output=folder, **options)


def measured(monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let the two backends be as fast as it says; everything else is as it is."""
    contest = choice.contest

    def contested(*arguments: Any, **options: Any) -> Any:
        found = contest(*arguments, **{**options, "seconds": 0.1})
        rounds = {"native": ((1e-3,),) * 8, "ort": ((ratio * 1e-3,),) * 8}
        return replace(found, timings=Timings(rounds))

    monkeypatch.setattr(choice, "contest", contested)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIAOTUI_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(("ratio", "kept"), [(1.4, "cpu-native"), (0.7, "cpu-ort")])
def test_the_faster_one_is_kept_and_the_other_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, kept: str
) -> None:
    measured(monkeypatch, ratio)
    with compiled(tmp_path / "m", timing=0.1) as executable:
        assert set(executable.manifest.variants) == {kept, "source"}
        assert executable.manifest.default == kept
        chosen = executable.report["choice"]
        assert f"cpu-{chosen['kept']}" == kept and not chosen["cached"]
        rows = {row["backend"]: row for row in chosen["candidates"]}
        assert rows["native"]["seconds"] == pytest.approx(1e-3)
        assert rows["ort"]["seconds"] == pytest.approx(ratio * 1e-3)
        loser = "ort" if chosen["kept"] == "native" else "native"
        assert rows[loser]["state"] == "slower" and rows[loser]["ratio"] < 1
        assert rows["tvm"]["state"] == "left out" and "ONNX Runtime" in rows["tvm"]["why"]
        assert executable.report["latency"] is not None
        y = Encoder().eval()(torch.from_numpy(X)).detach().numpy()
        np.testing.assert_allclose(next(iter(executable.run(first(executable)).values())), y, atol=1e-5)
    folders = {path.name for path in (tmp_path / "m" / "variants").iterdir()}
    assert folders == {kept, "source"}

    monkeypatch.setattr(choice, "contest", lambda *_, **__: pytest.fail("measured again"))
    with compiled(tmp_path / "again", timing=0.1) as executable:
        again = executable.report["choice"]
        assert again == {**chosen, "cached": True} and executable.manifest.default == kept
        assert executable.report["latency"] is not None


def test_a_decision_that_does_not_work_any_more_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 1.4)
    compiled(tmp_path / "m", timing=0.1).close()

    def refused(self: NativeBackend, *arguments: Any) -> Any:
        raise ToolError("gcc", "was removed")

    monkeypatch.setattr(NativeBackend, "build", refused)
    with compiled(tmp_path / "m", timing=0.1) as executable:
        assert executable.report["choice"]["kept"] == "ort" and not executable.report["choice"]["cached"]
        assert any("native was the fastest before, and is not now" in n for n in executable.report["notes"])


def first(executable: miaotui.Executable) -> dict[str, Any]:
    return {executable.inputs[0].name: X}


def test_a_native_folder_moves_and_is_replaced_like_any_other(tmp_path: Path) -> None:
    with compiled(tmp_path / "m", backend="native", timing=0) as executable:
        expected = executable.run(first(executable))
        record = executable.manifest.variants["cpu-native"]
        assert record.backend == "native" and record.target.startswith("cpu:")
        assert {"isa", "weights", "cflags", "libs", "compiler"} <= record.settings.keys()
        assert driver.verify(executable).ok
        assert "keeps no inner values" in executable.verify(Encoder().eval()).note
    (tmp_path / "m").rename(tmp_path / "moved")
    with miaotui.open(tmp_path / "moved") as opened:
        (tmp_path / "moved").rename(tmp_path / "again")
        found = opened.run(first(opened))
        assert all(np.array_equal(found[name], expected[name]) for name in expected)
        assert opened.bench(runs=3).candidates[0].load < 0.1
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "again"), "--format", "json", "--check"])
    assert json.loads(result.stdout)["variants"]["cpu-native"]["target"] == record.target


def test_without_a_compiler_onnxruntime_is_taken_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(isa: object) -> None:
        raise ToolError("C compiler", "none was found", "apt install gcc, or pip install ziglang")

    monkeypatch.setattr(candidates, "find_toolchain", missing)
    with compiled(tmp_path / "m", timing=0) as executable:
        assert executable.manifest.default == "cpu-ort"
        [note] = executable.report["notes"]
    assert "no native code: C compiler: none was found; apt install gcc, or pip install ziglang" in note


def test_nodes_without_a_kernel_are_named_and_onnxruntime_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(NativeBackend, "supports", lambda self, node, target: "no kernel is written for it")
    with compiled(tmp_path / "m", timing=0) as executable:
        assert executable.manifest.default == "cpu-ort"
        [note] = executable.report["notes"]
    assert "no native code" in note and "no kernel is written for it" in note and "node '" in note


def test_what_native_code_can_not_take_is_refused_by_name_if_it_was_asked_for(tmp_path: Path) -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    with pytest.raises(UnsupportedError, match=r"Conv.*no kernel is written for it"):
        miaotui.compile(
            net.eval(), inputs=(torch.zeros(1, 3, 8, 8),), output=tmp_path / "m", backend="native", timing=0
        )
    assert not (tmp_path / "m").exists()


def test_convolutions_are_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "find_toolchain", lambda isa: pytest.fail("looked for a compiler"))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    with miaotui.compile(
        net.eval(), inputs=(torch.zeros(1, 3, 8, 8),), output=tmp_path / "m", timing=0
    ) as made:
        assert made.manifest.default == "cpu-ort"


def test_a_target_that_this_cpu_is_not_is_built_but_not_proved(tmp_path: Path) -> None:
    with compiled(tmp_path / "m", target="cpu:armv8.2-a") as executable:
        assert executable.manifest.variants["cpu-native"].target == "cpu:armv8.2-a"
        assert executable.manifest.certificate is None
        assert any("not proved or timed here" in note for note in executable.report["notes"])
        with pytest.raises(ToolError, match="was built for aarch64"):
            executable.run(first(executable))


def test_for_gpus_tvm_is_built_where_it_can_be_timed_and_has_kernels(tmp_path: Path) -> None:
    with compiled(tmp_path / "m", target="cuda:sm_90", timing=0.1) as executable:
        chosen = executable.report["choice"]
        assert set(executable.manifest.variants) == {"cuda-ort", "source"}
    rows = {row["backend"]: row for row in chosen["candidates"]}
    assert (rows["tvm"]["state"], rows["tvm"]["why"]) == ("left out", "nothing is timed")
    with compiled(tmp_path / "small", target="cuda:sm_90", precision="int8", timing=0) as executable:
        (tvm,) = (row for row in executable.report["choice"]["candidates"] if row["backend"] == "tvm")
    assert "int8 weights are for CPUs" in tvm["why"]
