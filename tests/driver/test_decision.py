"""Timings in, choice out: recorded rounds, and noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from miaotui.driver import choice
from miaotui.driver.decision import Decision, Outcome, decided, read
from miaotui.runtime.timing import Timings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
ORDER = ("native", "ort", "tvm", "ort+tvm")

RECORDED: dict[str, dict[str, list[float]]] = {
    # microseconds, the best call of each round: AVX-512, one thread, all candidates of a model side by side
    "dense MLP 784-512-16, batch 1": {
        "ort": [45.6, 44.7, 32.4, 43.2, 45.1, 42.9],
        "tvm": [42.4, 42.3, 44.0, 42.2, 43.5, 42.5],
    },
    "dense MLP 128-128-128-16, batch 1": {
        "native": [12.7, 12.9, 12.8, 12.7, 12.8, 12.6],
        "ort": [10.8, 11.0, 11.1, 10.8, 10.7, 10.6],
        "tvm": [14.7, 14.9, 14.9, 14.6, 15.1, 14.8],
    },
    "encoder of 2 layers, dense, 64 tokens": {
        "native": [2276.2, 2337.9, 2470.3, 2373.2, 6763.2, 2371.5, 2222.9, 2296.3, 2406.8, 2298.8],
        "ort": [3021.8, 2803.3, 2802.6, 3056.4, 7491.7, 2921.8, 3018.4, 2733.3, 7106.4, 7058.7],
        "tvm": [3019.6, 3037.7, 7248.3, 3097.3, 7565.3, 2907.3, 3231.7, 3037.9, 7308.9, 7795.2],
    },
    "MLP 768-3072-768, 85 % of blocks zero, batch 1": {
        "ort": [1001.5, 1580.2, 1507.2, 1572.5, 1611.3, 1645.8, 1613.6, 1381.4, 1521.5, 1029.4],
        "tvm": [62.9, 85.6, 192.7, 137.1, 109.2, 109.8, 109.1, 106.7, 80.5, 78.7],
    },
    "encoder of 2 layers, 85 % of blocks zero, 64 tokens": {
        "native": [879.5, 841.1, 578.5, 847.3, 552.7, 823.0, 951.8, 910.0, 679.3, 6465.0],
        "ort": [2919.5, 3313.7, 7035.1, 2665.4, 2757.0, 3006.8, 7327.2, 2927.1, 7063.7, 7388.9],
        "tvm": [1556.2, 1509.7, 1467.9, 1213.6, 1473.9, 1366.6, 1390.9, 1110.9, 1413.6, 1432.0],
        "ort+tvm": [1492.1, 1576.5, 1416.2, 2028.3, 1586.2, 1044.8, 1623.6, 1924.4, 1708.0, 1832.2],
    },
}


WINNERS = ("ort", "ort", "native", "tvm", "native")


def timings(microseconds: dict[str, list[float]]) -> Timings:
    return Timings(
        {name: tuple((1e-6 * t, 1.05e-6 * t) for t in rounds) for name, rounds in microseconds.items()}
    )


def kept(microseconds: dict[str, list[float]]) -> str:
    order = [name for name in ORDER if name in microseconds]
    return Decision(decided(timings(microseconds), order)).kept


@pytest.mark.parametrize(
    ("model", "winner"),
    zip(RECORDED, WINNERS, strict=True),
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


def test_of_the_stored_tables_no_case_that_tvm_loses_goes_to_it() -> None:
    rows = json.loads((RESULTS / "tvm-sparse.json").read_text("utf-8"))["dense"]["rows"]
    ours = [row for row in rows if row["name"] == "tvm dense"]
    ort = {(r["case"], r["threads"]): r["median ms"] for r in rows if r["name"] == "onnxruntime dense"}
    choices = {}
    for row in ours:
        key = row["case"], row["threads"]
        choices[key] = kept({"ort": [1e3 * ort[key]] * 8, "tvm": [1e3 * row["median ms"]] * 8})
    lost = [(r["case"], r["threads"]) for r in ours if r["median ms"] >= ort[r["case"], r["threads"]]]
    won = [(r["case"], r["threads"]) for r in ours if r["low"] > 1.1]
    assert lost or won
    assert [key for key in lost if choices[key] != "ort"] == []
    assert [key for key in won if choices[key] != "tvm"] == []


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
    assert (
        outcomes["tvm"].state == "as fast"
        and outcomes["tvm"].why == "as fast within the noise"
        and outcomes["native"].why == ""
    )
    assert outcomes["native"].ratio == pytest.approx(100.5 / 120)


def test_a_decision_survives_json_and_nothing_else_is_taken_for_one() -> None:
    outcomes = decided(timings(RECORDED["dense MLP 784-512-16, batch 1"]), ["ort", "tvm"])
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
