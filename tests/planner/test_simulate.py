"""The simulation agrees with what can be computed, and shows what can't: waiting, chunks, pictures."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.planner.constants import Stack
from miaotui.compiler.planner.forecast import forecast
from miaotui.compiler.planner.gantt import check_picture, draw, window
from miaotui.compiler.planner.load import Load
from miaotui.compiler.planner.simulate import simulate
from miaotui.compiler.planner.steady import steady
from support.planning import DEVICE, cost, decoder

EVEN = decoder(vocab_size=1, architectures=["BertModel"], model_type="bert")
"""An encoder, whose stages take as long as each other."""

NEAR = replace(DEVICE, link=replace(DEVICE.link, bandwidth=1e30))


@pytest.mark.parametrize(("stages", "micro_batches"), [(1, 3), (2, 2), (2, 6), (4, 4), (4, 12)])
def test_a_pipeline_that_is_filled_and_emptied_has_the_known_bubble(stages: int, micro_batches: int) -> None:
    staged = cost(EVEN, Mesh(pp=stages), NEAR, stack=Stack(sequences=micro_batches))
    made = simulate(staged, Load(16, 0, requests=micro_batches), batch=1)
    assert made.bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1), rel=1e-6)
    assert len(made.spans) == stages * micro_batches


def test_one_stage_never_waits_and_gives_the_steady_rate() -> None:
    load = Load(4, 64, concurrency=8)
    made = simulate(cost(), load)
    assert made.bubble == pytest.approx(0.0, abs=1e-9)
    assert made.rate == pytest.approx(steady(cost(), load).rate, rel=0.03)
    assert made.tpot is not None
    assert made.tpot[0] <= steady(cost(), load).cycle <= made.tpot[1]


def test_stages_with_enough_micro_batches_give_the_steady_rate() -> None:
    staged, load = cost(mesh=Mesh(dp=2, pp=4), device=NEAR), Load(4, 64, concurrency=32)
    assert simulate(staged, load).rate == pytest.approx(steady(staged, load).rate, rel=0.05)


def test_no_simulated_rate_passes_the_bound_of_the_slowest_stage() -> None:
    for pp in (1, 2, 4):
        staged, load = cost(mesh=Mesh(pp=pp)), Load(256, 32, concurrency=8)
        assert simulate(staged, load).rate <= steady(staged, load).rate * 1.02


def test_a_request_alone_takes_what_the_forecast_says() -> None:
    staged, load = cost(mesh=Mesh(pp=2)), Load(100, 40, concurrency=1)
    found, made = forecast(staged, load), simulate(staged, replace(load, requests=1))
    assert found is not None
    assert made.ttft is not None
    assert made.ttft[0] == pytest.approx(found.ttft, rel=0.02)
    assert made.seconds == pytest.approx(found.latency(40), rel=0.02)
    assert made.rate == pytest.approx(found.rate, rel=0.02)


@pytest.mark.parametrize(
    "load", [Load(512, 1), Load(100_000, 1, concurrency=9), Load(3000, 3, concurrency=40)]
)
def test_loads_that_are_nearly_all_prompt_give_the_steady_rate(load: Load) -> None:
    made = simulate(cost(), load)
    assert made.rate == pytest.approx(steady(cost(), load).rate, rel=0.15)


def test_every_request_is_served_once() -> None:
    made = simulate(cost(mesh=Mesh(pp=2)), Load(10, 7, concurrency=6, requests=25))
    assert made.rate * made.seconds == pytest.approx(25 * 7)


def test_a_long_prompt_is_read_in_chunks() -> None:
    small = cost(stack=Stack(tokens=256))
    made = simulate(small, Load(1000, 1, concurrency=1, requests=1))
    assert [span.prompt for span in made.spans] == [256, 256, 256, 232]


def test_prompts_of_others_hold_up_the_late_tokens() -> None:
    made = simulate(cost(), Load(4000, 64, concurrency=4))
    assert made.tpot is not None
    assert made.tpot[1] > 3 * made.tpot[0]


def test_the_same_simulation_gives_the_same() -> None:
    load = Load(64, 32, concurrency=8)
    assert simulate(cost(mesh=Mesh(pp=2)), load) == simulate(cost(mesh=Mesh(pp=2)), load)


def test_nothing_is_simulated_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no sequence fits"):
        simulate(cost(device=replace(DEVICE, memory=DEVICE.reserve)), Load(8, 8))


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    made = simulate(cost(mesh=Mesh(pp=2)), Load(64, 32, concurrency=8))
    path = tmp_path / f"stages{suffix}"
    draw(made, "small", path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
    if suffix == ".svg":
        assert data.count(b"<path") > len(window(made.spans))


def test_a_picture_shows_a_step_that_reads_a_prompt() -> None:
    made = simulate(cost(mesh=Mesh(pp=2)), Load(64, 32, concurrency=8))
    shown = window(made.spans)
    assert any(span.prompt for span in shown)
    assert {span.stage for span in shown} == {0, 1}
    assert all(math.isfinite(span.end) for span in shown)


def test_pictures_that_can_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"\.jpg is no picture"):
        check_picture(tmp_path / "a.jpg")
    with pytest.raises(OptionError, match="its folder does not exist"):
        check_picture(tmp_path / "none" / "a.png")
