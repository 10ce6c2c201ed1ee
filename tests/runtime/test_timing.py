"""Timing: interleaved, bounded, and a verdict only where the data carry one."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest
from miaotui.runtime import timing
from miaotui.runtime.timing import Latency, Timings, interleave, warm_up


class Clock:
    """In place of the module ``time``: it goes on when it is told, so that no load of the machine counts."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def busy(self, seconds: float) -> Callable[[], None]:
        """A call that takes ``seconds``."""
        return lambda: self.sleep(seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def rounds(center: float, noise: float, seed: int, count: int = 20) -> tuple[tuple[float, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple((float(center * np.exp(noise * rng.standard_normal())),) for _ in range(count))


def test_latency_is_numpys_statistics() -> None:
    seconds = list(np.random.default_rng(0).random(101))
    found = Latency.of(seconds)
    assert found.runs == 101 and found.minimum == min(seconds)
    assert found.median == pytest.approx(np.median(seconds))
    assert found.p90 == pytest.approx(np.quantile(seconds, 0.9))
    assert found.p99 == pytest.approx(np.quantile(seconds, 0.99))
    assert found.mean == pytest.approx(np.mean(seconds)) and found.std == pytest.approx(np.std(seconds))


def test_a_real_difference_is_seen_both_ways() -> None:
    timings = Timings({"a": rounds(1.0, 0.02, 0), "b": rounds(1.2, 0.02, 1)})
    fast, slow = timings.speedup("a", "b"), timings.speedup("b", "a")
    assert fast.verdict == "faster" and fast.low <= 1.2 * 1.03 and fast.high >= 1.2 * 0.97
    assert slow.verdict == "slower"
    assert fast.ratio == pytest.approx(1 / slow.ratio)


def test_equal_candidates_are_mostly_inconclusive() -> None:
    wrong = sum(
        Timings({"a": rounds(1, 0.05, s), "b": rounds(1, 0.05, s + 1000)}).speedup("a", "b").verdict
        != "inconclusive"
        for s in range(60)
    )
    assert wrong <= 8, "a 95 % interval errs in about 5 % of 60"


def test_drift_of_the_machine_cancels_out() -> None:
    drift = np.linspace(1, 3, 20)
    a = tuple((float(d),) for d in drift)
    b = tuple((float(1.1 * d),) for d in drift)
    found = Timings({"a": a, "b": b}).speedup("a", "b")
    assert found.verdict == "faster" and found.high - found.low < 1e-6


def test_too_few_rounds_give_no_verdict() -> None:
    timings = Timings({"a": rounds(1, 0.01, 0, 3), "b": rounds(9, 0.01, 1, 3)})
    assert timings.speedup("a", "b").verdict == "inconclusive"


def test_interleave_measures_what_runs(clock: Clock) -> None:
    timings = interleave({"fast": clock.busy(0.001), "slow": clock.busy(0.003)}, runs=20)
    assert timings.latency("fast").runs >= 20
    assert timings.latency("fast").minimum == pytest.approx(0.001)
    found = timings.speedup("fast", "slow")
    assert found.verdict == "faster" and found.ratio == pytest.approx(3)


def test_the_clock_is_one_that_runs() -> None:
    seconds = interleave({"a": lambda: sum(range(1000))}, runs=6).latency("a")
    assert seconds.runs >= 6 and 0 < seconds.minimum <= seconds.median < math.inf


def test_order_alternates_and_collection_is_off(clock: Clock) -> None:
    seen: list[str] = []
    collecting: list[bool] = []

    def call(name: str) -> Callable[[], None]:
        def run() -> None:
            seen.append(name)
            collecting.append(gc.isenabled())
            clock.sleep(0.021)

        return run

    interleave({"a": call("a"), "b": call("b")}, runs=6)
    measured = "".join(seen[-12:])
    assert measured in ("abba" * 3, "baab" * 3)
    assert not any(collecting) and gc.isenabled()


def test_seconds_bound_the_measurement(clock: Clock) -> None:
    timings = interleave({"a": clock.busy(0.01), "b": clock.busy(0.01)}, runs=10_000, seconds=0.5)
    assert 0.5 < clock.now < 0.55, "until the time is over and the round is whole"
    assert timings.latency("a").runs == timings.latency("b").runs >= 6


def test_six_rounds_are_made_whatever_they_take(clock: Clock) -> None:
    assert interleave({"a": clock.busy(9.0)}, seconds=0.5).latency("a").runs == 6


def test_rest_comes_before_every_block(clock: Clock) -> None:
    timings = interleave({"a": clock.busy(0.1), "b": clock.busy(0.1)}, runs=6, settle=0.04)
    warm, rounds = 2 * 6 * 0.1, timings.latency("a").runs
    assert clock.now == pytest.approx(warm + 2 * rounds * (0.1 + 0.04))


def test_warm_up_goes_on_while_calls_get_faster(clock: Clock) -> None:
    durations = [0.02, 0.016, 0.012, 0.008, 0.006, 0.004, 0.002, *[0.001] * 30]
    left = iter(durations)
    assert warm_up(lambda: clock.sleep(next(left))) == pytest.approx(0.001)
    assert len(durations) - len(list(left)) == 11, "three calls that are no faster than the eighth"


def test_warm_up_ends_with_its_time(clock: Clock) -> None:
    calls: list[float] = []

    def run() -> None:
        calls.append(clock.now)
        clock.sleep(1.0)

    warm_up(run, limit=2.5)
    assert len(calls) == 3


def test_an_error_in_a_candidate_turns_collection_on_again() -> None:
    def fail() -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        interleave({"a": fail})
    assert gc.isenabled()


@pytest.mark.parametrize(("count", "skipped"), [(6, 0), (9, 1), (20, 5), (50, 17), (1, 0)])
def test_interval_is_that_of_the_sign_test(count: int, skipped: int) -> None:
    """Ranks from the tables of the binomial distribution: with 20 values, the 6th and the 15th."""
    values = [math.exp(i) for i in range(count)]
    timings = Timings({"a": tuple((1.0,) for _ in values), "b": tuple((v,) for v in values)})
    found = timings.speedup("a", "b")
    assert found.low == pytest.approx(values[skipped])
    assert found.high == pytest.approx(values[-1 - skipped])


def test_disturbed_calls_do_not_hide_the_difference() -> None:
    rng = np.random.default_rng(0)

    def disturbed(center: float) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(center * (1 + rng.exponential(2.0, 4) * (rng.random(4) < 0.5))) for _ in range(20))

    found = Timings({"a": disturbed(1.0), "b": disturbed(1.1)}).speedup("a", "b")
    assert found.verdict == "faster" and found.ratio == pytest.approx(1.1, rel=0.02)
