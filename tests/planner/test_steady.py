"""The steady state: pipelines, rounds, rates, first tokens; and figures that were published."""

from __future__ import annotations

from dataclasses import replace

import pytest
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.planner.catalogue import devices
from miaotui.compiler.planner.config import network_of
from miaotui.compiler.planner.constants import fitted
from miaotui.compiler.planner.forecast import forecast
from miaotui.compiler.planner.load import Load
from miaotui.compiler.planner.steady import stage_steps, steady
from miaotui.compiler.planner.step import Cost, Work
from support.planning import DEVICE, LLAMA_70B, cost, decoder

LOAD = Load(prompt=4, output=64, concurrency=8)
EVEN = decoder(vocab_size=1)
"""A head so small that four stages take as long as each other."""


def test_one_stage_has_no_bubble() -> None:
    state = steady(cost(), LOAD)
    assert state.busy == pytest.approx(1.0)
    assert state.rate == pytest.approx(8 / state.cycle)


def test_as_many_micro_batches_as_stages_keep_them_busy_and_fewer_do_not() -> None:
    staged = cost(EVEN, Mesh(pp=4), replace(DEVICE, link=replace(DEVICE.link, bandwidth=1e30)))
    assert steady(staged, LOAD).busy == pytest.approx(1.0, rel=0.02)
    assert steady(staged, LOAD, batch=4).busy == pytest.approx(0.5, rel=0.02)
    assert steady(staged, LOAD, batch=8).busy == pytest.approx(0.25, rel=0.02)


def test_transfers_between_stages_make_a_bubble() -> None:
    slow = replace(DEVICE, link=replace(DEVICE.link, latency=1.0))
    state = steady(cost(EVEN, Mesh(pp=2), slow), LOAD)
    assert state.cycle == pytest.approx(1.0, rel=1e-3)
    assert state.busy < 0.01


def test_replicas_multiply_the_rate() -> None:
    one, two = (steady(cost(mesh=Mesh(dp=dp)), replace(LOAD, concurrency=8 * dp)) for dp in (1, 2))
    assert two.rate == pytest.approx(2 * one.rate)
    assert two.cycle == one.cycle


def test_few_requests_are_served_in_whole_rounds() -> None:
    small = cost(stack=replace(cost().stack, sequences=8))
    assert steady(small, Load(4, 64, requests=9)).batch == 4.5
    assert steady(small, Load(4, 64, requests=16)).batch == 8


def test_prompts_are_read_in_chunks_that_hold_up_the_others() -> None:
    state = steady(cost(), Load(prompt=640, output=64, concurrency=8))
    assert state.mixing == pytest.approx(8 / 64)
    quiet = cost().step(Work(decode=8 * 63 / 64, context=672, held=8)).seconds
    mixed = state.mixed[0].seconds
    assert state.cycle == pytest.approx(quiet + (mixed - quiet) / 8)


def test_alone_the_first_token_takes_the_prompt_through_all_stages() -> None:
    staged = cost(mesh=Mesh(pp=2))
    found = forecast(staged, Load(100, 10, concurrency=1))
    assert found is not None
    steps = stage_steps(staged, Work(prompt=100, prompt_context=50, chunk=100, context=105, held=1))
    assert found.ttft == pytest.approx(sum(s.seconds for s in steps) + staged.send(100))
    assert found.rate == pytest.approx(10 / found.latency(10))


def test_the_price_is_of_all_devices() -> None:
    found = forecast(cost(mesh=Mesh(dp=2)), LOAD, price=3.6)
    assert found is not None
    assert found.dollars == pytest.approx(2 * 3.6 / 3600 / found.rate * 1e6)


def test_what_does_not_fit_has_no_forecast() -> None:
    assert forecast(cost(device=replace(DEVICE, memory=DEVICE.reserve + 10)), LOAD) is None


@pytest.mark.parametrize(
    ("name", "precision", "mesh", "load", "published"),
    [
        ("rtxpro6000", "fp4", Mesh(pp=1), Load(128, 128, requests=30000), 3264),
        ("rtxpro6000", "fp4", Mesh(pp=8), Load(128, 128, requests=30000), 11881),
        ("rtxpro6000", "fp4", Mesh(pp=4), Load(20000, 2000, requests=1000), 630),
        ("h100", "fp8", Mesh(tp=2), Load(128, 2048, requests=3000), 6651),
        ("h200", "fp8", Mesh(), Load(1000, 1000, requests=3000), 2909),
    ],
)
def test_published_rates_of_llama_70b(
    name: str, precision: str, mesh: Mesh, load: Load, published: float
) -> None:
    _, device = devices(name)
    constants = fitted()
    stack = constants.stack(None, device)
    found = steady(Cost(network_of(LLAMA_70B, "x"), device, mesh, precision, "fp8", constants, stack), load)
    assert found.rate == pytest.approx(published, rel=0.2)
