"""Timings in, choice out: recorded rounds, and noise."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from miaotui.driver import choice
from miaotui.driver.decision import Decision, Outcome, decided, read
from miaotui.runtime.timing import Timings

ORDER = ("native", "ort", "tvm", "ort+tvm")

SPREAD = (1.0, 0.988, 1.015, 0.995, 1.03, 0.984, 1.004, 1.01)
"""Best calls of eight rounds over their median, on a quiet machine."""

MEDIANS: dict[str, dict[str, float]] = {
    # microseconds: AVX-512, one thread, batch 1; pairs measured apart are scaled to the same ONNX Runtime
    "dense MLP 32-64-8": {"native": 11.8, "ort": 8.9, "tvm": 12.0},
    "dense MLP 128-128-128-10": {"native": 13.7, "ort": 11.2, "tvm": 17.9},
    "dense MLP 784-512-10": {"ort": 33.9, "tvm": 38.0},
    "BERT layer, dense, by TVM's own schedules": {"ort": 3350.0, "tvm": 170 * 3350.0},
    "MLP 768-3072-768, 85 % of blocks zero": {"ort": 1786.9, "tvm": 164.6},
    "encoder of 2 layers, 85 % of blocks zero": {"native": 1693.8, "ort": 9800.2},
}
RECORDED = {
    model: {
        name: [median * s for s in SPREAD[k:] + SPREAD[:k]] for k, (name, median) in enumerate(row.items())
    }
    for model, row in MEDIANS.items()
}


def timings(microseconds: dict[str, list[float]]) -> Timings:
    return Timings(
        {name: tuple((1e-6 * t, 1.05e-6 * t) for t in rounds) for name, rounds in microseconds.items()}
    )


def kept(microseconds: dict[str, list[float]]) -> str:
    order = [name for name in ORDER if name in microseconds]
    return Decision(decided(timings(microseconds), order)).kept


@pytest.mark.parametrize(
    ("model", "winner"),
    zip(RECORDED, ["ort", "ort", "ort", "ort", "tvm", "native"], strict=True),
    ids=lambda v: v,
)
def test_recorded_timings_give_the_choice_that_was_right(model: str, winner: str) -> None:
    assert kept(RECORDED[model]) == winner


@pytest.mark.parametrize("model", [name for name in RECORDED if "dense" in name])
@pytest.mark.parametrize("others", [("ort",), ("native", "ort"), ("native",)])
def test_where_tvm_loses_it_is_never_kept(model: str, others: tuple[str, ...]) -> None:
    rounds = {name: t for name, t in RECORDED[model].items() if name in (*others, "tvm")}
    if len(rounds) > 1:
        assert kept(rounds) != "tvm"


@pytest.mark.parametrize("seed", range(40))
def test_noise_never_turns_the_order(seed: int) -> None:
    """Equal candidates under the drift and the outliers of a busy machine: the preferred one is kept."""
    rng = np.random.default_rng(seed)
    drift = 100 * np.exp(0.1 * np.cumsum(rng.normal(size=12)))
    rounds = {
        name: list(drift * (1 + 0.03 * np.abs(rng.standard_t(2, size=12))))
        for name in ("ort", "tvm", "ort+tvm")
    }
    assert kept(rounds) == "ort"


@pytest.mark.parametrize("seed", range(20))
def test_a_fifth_is_seen_through_the_same_noise(seed: int) -> None:
    rng = np.random.default_rng(seed)
    drift = 100 * np.exp(0.1 * np.cumsum(rng.normal(size=20)))
    rounds = {
        name: list(drift * factor * (1 + 0.03 * np.abs(rng.standard_t(2, size=20))))
        for name, factor in (("native", 1.25), ("ort", 1.0), ("tvm", 1.2))
    }
    assert kept(rounds) == "ort"


def test_with_two_rounds_a_tenth_is_no_difference_and_a_half_is() -> None:
    assert kept({"native": [105, 108], "ort": [100, 100]}) == "native"
    assert kept({"native": [150, 90], "ort": [100, 100]}) == "native"
    assert kept({"native": [150, 160], "ort": [100, 100]}) == "ort"


def test_of_equals_the_preferred_one_is_kept_though_another_beat_a_third() -> None:
    rounds = {"native": [120.0] * 8, "ort": [100.5] * 8, "tvm": [100.0] * 8}
    outcomes = {outcome.backend: outcome for outcome in decided(timings(rounds), ["native", "ort", "tvm"])}
    assert outcomes["ort"].state == "kept"
    assert outcomes["tvm"].why == "as fast within the noise" and outcomes["native"].why == ""
    assert outcomes["native"].ratio == pytest.approx(100.5 / 120)


def test_a_decision_survives_json_and_nothing_else_is_taken_for_one() -> None:
    outcomes = decided(timings(RECORDED["dense MLP 784-512-10"]), ["ort", "tvm"])
    made = Decision((*outcomes, Outcome("native", "left out", "no compiler")))
    data: dict[str, Any] = json.loads(json.dumps(made.to_json()))
    again = read(data)
    assert again is not None and again.cached and again.outcomes == made.outcomes
    for damage in ({}, {**data, "kept": "tvm"}, {**data, "candidates": data["candidates"][:1]}, {"kept": 1}):
        assert read(damage) is None
    alone = Decision((Outcome("ort", "kept", "the only one to try"),))
    assert read(alone.to_json()) is None


def test_first_calls_rule_out_only_what_is_far_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"ort": 0.010, "tvm": 0.039, "ort+tvm": 0.041}
    rivals: dict[str, Any] = {name: name for name in seconds}
    monkeypatch.setattr(choice, "first_calls", lambda built, inputs, threads: seconds[built])
    kept, slower = choice._rough(rivals, {}, 1)
    assert (kept.backend, kept.state, kept.seconds) == ("ort", "kept", 0.010)
    assert (slower.backend, slower.state) == ("ort+tvm", "slower") and "4 times as long" in slower.why
    assert choice._rough({"ort": rivals["ort"]}, {}, 1) == []
