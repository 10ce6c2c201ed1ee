"""The search ranks first what trying everything finds; what can't be is refused with what can."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from miaotui.compiler.errors import OptionError
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.planner.catalogue import GIB, devices
from miaotui.compiler.planner.config import network_of
from miaotui.compiler.planner.constants import fitted
from miaotui.compiler.planner.forecast import Forecast, forecast
from miaotui.compiler.planner.layout import stage_layers
from miaotui.compiler.planner.load import Load
from miaotui.compiler.planner.memory import memory_of
from miaotui.compiler.planner.search import GOALS, Goal, Wish, plan
from miaotui.compiler.planner.steady import sequences_of
from miaotui.compiler.planner.step import Cost
from support.planning import DEVICE, LLAMA_70B, decoder

NETWORK = network_of(LLAMA_70B, "llama-70b")


def everything(count: int, wish: Wish) -> list[Forecast]:
    """Forecasts of all meshes and micro-batches, found without the search."""
    _, device = devices("h100")
    constants = fitted()
    found = []
    for dp, pp, tp in product(range(1, count + 1), repeat=3):
        if dp * pp * tp > count or tp not in (1, 2, 4, 8):
            continue
        stack = constants.stack(None, device)
        cost = Cost(NETWORK, device, Mesh(dp, pp, tp), wish.precision, wish.cache, constants, stack)
        memory = memory_of(cost, wish.load)
        held = sequences_of(cost, wish.load, memory)
        for count_of in {min(held, pp * times) for times in (1, 2, 4)} - {0}:
            made = forecast(cost, wish.load, held / count_of, wish.price)
            if made is not None:
                found.append(made)
    return found


@pytest.mark.parametrize("goal", GOALS)
def test_finds_what_trying_everything_finds(goal: Goal) -> None:
    load = Load(512, 128, concurrency=1 if goal == "latency" else None)
    wish = Wish(load, goal, price=2.0)
    count, device = devices("8xh100")
    planned = plan(NETWORK, count, device, wish)
    tried = [found for found in everything(count, wish) if goal != "latency" or found.mesh.dp == 1]
    best = {
        "latency": min(found.latency(128) for found in tried),
        "throughput": max(found.rate for found in tried),
        "cost": min(found.dollars or 0.0 for found in tried),
    }[goal]
    got = {
        "latency": planned.best.latency(128),
        "throughput": planned.best.rate,
        "cost": planned.best.dollars,
    }[goal]
    assert got == pytest.approx(best)


def test_latency_wants_ranks_and_throughput_wants_none_that_are_not_needed() -> None:
    count, device = devices("8xh100")
    quick = plan(NETWORK, count, device, Wish(Load(512, 128, concurrency=1), "latency")).best.mesh
    assert (quick.tp, quick.dp) == (8, 1)
    network = network_of({**LLAMA_70B, "num_hidden_layers": 8}, "small")
    many = plan(network, count, device, Wish(Load(512, 128), "throughput")).best.mesh
    assert (many.tp, many.dp) == (1, 8)


def test_limits_are_kept_by_serving_fewer_at_a_time() -> None:
    count, device = devices("8xh100")
    free = plan(NETWORK, count, device, Wish(Load(512, 128)))
    held = plan(NETWORK, count, device, Wish(Load(512, 128), slowest_next=0.03, slowest_first=0.2))
    assert free.best.tpot > 0.03
    assert held.best.tpot <= 0.03
    assert held.best.ttft <= 0.2
    assert held.best.concurrency < free.best.concurrency


def test_a_limit_that_none_meets_is_told_with_the_nearest() -> None:
    count, device = devices("8xh100")
    with pytest.raises(OptionError, match=r"--max-tpot: 1 ms: the best of \d+ meshes takes .* ms"):
        plan(NETWORK, count, device, Wish(Load(512, 128), slowest_next=0.001))


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    count, device = devices("2xrtx4090")
    with pytest.raises(OptionError) as caught:
        plan(NETWORK, count, device, Wish(Load(512, 128)))
    text = str(caught.value)
    assert "131.4 GiB of weights in fp16" in text
    assert "give 6xrtx4090 (pp 3 · tp 2)" in text
    assert "--precision int4 (tp 2)" in text
    assert plan(NETWORK, 6, device, Wish(Load(512, 128))).fitting
    assert plan(NETWORK, 2, device, Wish(Load(512, 128), precision="int4")).fitting


def test_a_given_mesh_that_does_not_fit_names_one_that_does() -> None:
    count, device = devices("8xh100")
    with pytest.raises(OptionError, match=r"leave the mesh to the planner \(tp 2 fits\)"):
        plan(NETWORK, count, device, Wish(Load(512, 128), tp=1, pp=1))


def test_meshes_that_can_not_be_are_told_all_at_once() -> None:
    count, device = devices("8xh100")
    with pytest.raises(OptionError) as caught:
        plan(NETWORK, count, device, Wish(Load(512, 128), tp=3, pp=81))
    places = [problem.place for problem in caught.value.problems]
    assert places == ["--tp 3", "--pp 81", "--devices 8"]
    assert caught.value.problems[0].fix == "give 2 or 4"


def test_more_tokens_than_the_model_takes_are_refused() -> None:
    with pytest.raises(OptionError, match="30 tokens, and 10 written, pass small's 32"):
        plan(decoder(max_position_embeddings=32), 1, DEVICE, Wish(Load(30, 10)))


def test_a_number_of_replicas_that_is_given_is_kept() -> None:
    count, device = devices("8xh100")
    planned = plan(NETWORK, count, device, Wish(Load(512, 128, concurrency=4), dp=3, precision="fp8"))
    assert {found.mesh.dp for found in planned.forecasts} == {3}
    with pytest.raises(OptionError, match="give at most 2, or --concurrency 3"):
        plan(NETWORK, count, device, Wish(Load(512, 128, concurrency=2), dp=3))


def test_given_sizes_are_kept() -> None:
    count, device = devices("8xh100")
    planned = plan(NETWORK, count, device, Wish(Load(512, 128), pp=2, tp=2))
    assert {(f.mesh.pp, f.mesh.tp) for f in planned.forecasts} == {(2, 2)}


def test_cost_needs_a_price() -> None:
    with pytest.raises(OptionError, match="needs a price"):
        plan(decoder(), 1, DEVICE, Wish(Load(4, 4), "cost"))
    assert plan(decoder(), 1, replace(DEVICE, price=1.0), Wish(Load(4, 4), "cost")).best.dollars


def test_memory_bounds_how_many_sequences_there_are() -> None:
    small = replace(DEVICE, memory=DEVICE.reserve + GIB / 1000)
    assert (
        plan(decoder(), 1, small, Wish(Load(100, 100))).best.concurrency
        < plan(decoder(), 1, DEVICE, Wish(Load(100, 100))).best.concurrency
    )


def test_stages_share_layers_so_that_the_slowest_is_fastest() -> None:
    for pp in range(1, 9):
        layers = stage_layers(NETWORK, pp)
        assert sum(layers) == 80
        assert len(layers) == pp
        head = NETWORK.head / NETWORK.dense
        slowest = max([*layers[:-1], layers[-1] + head])
        assert slowest <= -(-80 // pp) + head
