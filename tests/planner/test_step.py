"""Costs that can be computed by hand: products, attention, collectives, kernels, host, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.planner.catalogue import GIB
from miaotui.compiler.planner.constants import Stack
from miaotui.compiler.planner.load import Load
from miaotui.compiler.planner.memory import CACHE_SHARE, memory_of
from miaotui.compiler.planner.step import Work
from support.planning import DEVICE, IDEAL, cost, decoder

LAYER, HEAD = 576, 256
PASSED, SPLIT = 12 * 8, 6 * (4 * 2 + 16)
"""Numbers that a layer moves for a token: of the whole width, and of heads and channels."""


def test_writing_a_token_reads_every_weight_once() -> None:
    step = cost().step(Work(decode=1, context=0))
    weights = (4 * LAYER + HEAD) * 2
    moved = 4 * (PASSED + SPLIT) * 2
    assert step.linear == pytest.approx((weights + moved) / 1e9)
    assert step.operations == 2 * (4 * LAYER + HEAD)
    assert step.seconds == step.linear


def test_many_tokens_are_bound_by_arithmetic() -> None:
    tokens = 100_000
    step = cost(device=replace(DEVICE, bandwidth=1e15)).step(Work(prompt=tokens))
    assert step.linear == pytest.approx(2 * (4 * LAYER * tokens + HEAD) / 2e12, rel=1e-3)


def test_weights_of_fewer_bits_are_read_sooner() -> None:
    moved = 4 * (PASSED + SPLIT) * 2 / 1e9
    wide, narrow = (cost(precision=p).step(Work(decode=1)).linear - moved for p in ("fp16", "int4"))
    assert narrow == pytest.approx(wide * 4.5 / 16)


def test_attention_reads_the_cache_of_every_token_it_attends_to() -> None:
    step = cost().step(Work(decode=3, context=50))
    assert step.attention == pytest.approx(3 * 50 * 4 * (2 * 2 * 2) * 2 / 1e9)


def test_a_prompt_attends_in_sixteen_bits_whatever_the_weights() -> None:
    device = replace(DEVICE, rates={"fp32": 1e12, "fp16": 2e12, "fp4": 8e12})
    step = cost(device=device, precision="fp4").step(Work(prompt=10, prompt_context=5))
    assert step.attention == pytest.approx(4 * 8 * 4 * 5 * 10 / 2e12)


def test_ranks_share_products_and_cache_and_sum_twice_a_layer() -> None:
    whole, half = (
        cost().step(Work(decode=1, context=50)),
        cost(mesh=Mesh(tp=2)).step(Work(decode=1, context=50)),
    )
    weights, moved = (4 * LAYER + HEAD) * 2, 4 * (PASSED + SPLIT / 2) * 2
    assert half.linear == pytest.approx((weights / 2 + moved) / 1e9)
    assert half.attention == whole.attention / 2
    assert half.communication == pytest.approx(4 * 2 * (8 * 2) / 1e8), "a ring of two moves the size once"
    assert half.operations == whole.operations / 2


def test_key_heads_fewer_than_ranks_are_repeated() -> None:
    two, four = (cost(mesh=Mesh(tp=tp)).step(Work(decode=1, context=50)).attention for tp in (2, 4))
    assert two == four


def test_more_ranks_than_a_node_has_go_through_the_network() -> None:
    device = replace(DEVICE, node=2)
    near, far = (cost(mesh=Mesh(tp=4), device=d).step(Work(decode=1)).communication for d in (DEVICE, device))
    assert far == pytest.approx(10 * near)


def test_only_the_last_stage_makes_logits() -> None:
    staged = cost(mesh=Mesh(pp=4))
    first, last = staged.step(Work(decode=1), 0), staged.step(Work(decode=1), 3)
    assert staged.layers == (1, 1, 1, 1)
    assert last.linear - first.linear == pytest.approx(HEAD * 2 / 1e9)


def test_the_host_costs_what_the_device_does_not_hide() -> None:
    work = Work(decode=1, held=10)
    idle = Stack(sequence=1e-3)
    assert cost(stack=idle).step(work).host == pytest.approx(1e-2)
    busy = cost(stack=Stack(sequence=1e-3, overlapped=True)).step(work)
    assert busy.seconds == pytest.approx(1e-2)


def test_kernels_take_time_and_their_launches_too_where_they_are_not_captured() -> None:
    constants = replace(IDEAL, kernel=1e-3, launch=3e-3)
    captured = cost(constants=constants).step(Work(decode=1))
    launched = cost(constants=constants, stack=Stack(captured=False)).step(Work(decode=1))
    assert captured.kernels == pytest.approx(4 * 10 * 1e-3)
    assert launched.seconds == pytest.approx(4 * 10 * 3e-3)


def test_experts_are_read_as_far_as_tokens_touch_them() -> None:
    network = decoder(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=4)
    one, many = (cost(network).step(Work(decode=n)) for n in (1, 1000))
    moved = 4 * (8 * (12 + 3 * 2) + 6 * (8 + 4 * 2)) * 2
    weights = 4 * (network.dense + 2 * network.expert) * 2 + HEAD * 2
    assert one.linear == pytest.approx((weights + moved) / 1e9)
    assert network.touched(1000) == pytest.approx(8)
    assert many.linear > 1000 * moved / 1e9


def test_ranks_that_attend_to_sequences_of_their_own_exchange_half_and_share_the_cache() -> None:
    network = decoder(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=4)
    work = Work(decode=8, context=50)
    shared = cost(network, Mesh(tp=2)).step(work)
    spread = cost(network, Mesh(tp=2), stack=Stack(spread=True)).step(work)
    assert spread.communication == shared.communication / 2
    assert spread.attention == shared.attention


def test_prompts_wait_for_the_rank_that_got_most_of_them() -> None:
    assert Work(prompt=100, chunk=100).fullest(4) == 100
    assert Work(prompt=100_000, chunk=1).fullest(4) == pytest.approx(25_000, rel=0.02)


def test_memory_by_hand() -> None:
    held = memory_of(cost(), Load(4, 6, concurrency=25))
    assert held.weights == (4 * LAYER + HEAD) * 2, "tied: once"
    assert held.activations == 100 * (4 * 8 + 2 * 16) * 2 + 100 * 32 * 4
    assert held.token == 4 * 8 * 2
    left = 10 * GIB - GIB - held.weights - held.activations
    assert held.sequences == int(left * CACHE_SHARE / (10 * held.token))


def test_stages_and_ranks_divide_weights_and_cache() -> None:
    load = Load(4, 6)
    whole, parts = memory_of(cost(), load), memory_of(cost(mesh=Mesh(pp=2, tp=2)), load)
    assert parts.weights == (2 * LAYER + HEAD) * 2 / 2
    assert parts.token == whole.token / 4


def test_a_network_that_is_too_large_holds_nothing() -> None:
    held = memory_of(cost(device=replace(DEVICE, memory=GIB + 1000)), Load(4, 6))
    assert not held.fits
    assert "GiB of weights" in str(held)


def test_where_memory_is_tight_steps_take_fewer_tokens() -> None:
    wide = memory_of(cost(), Load(4096, 6))
    tight = memory_of(cost(device=replace(DEVICE, memory=GIB + 700_000)), Load(4096, 6))
    assert wide.tokens == 8192
    assert 256 <= tight.tokens < wide.tokens
    assert tight.fits
