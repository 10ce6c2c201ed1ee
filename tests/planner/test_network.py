"""What a configuration says of a network: parameters, heads, cache, experts; and what it fails to say."""

from __future__ import annotations

import pytest
from miaotui.compiler.errors import ModelError, UnsupportedError
from miaotui.compiler.planner.config import network_of
from support.planning import LLAMA_70B, decoder


def test_counts_the_parameters_of_llama_70b() -> None:
    network = network_of(LLAMA_70B, "llama")
    assert network.parameters == pytest.approx(70.55e9, rel=1e-3)
    assert network.kv_width == 2 * 8 * 128
    assert network.read == pytest.approx(network.parameters - 128256 * 8192)


def test_a_small_decoder_by_hand() -> None:
    network = decoder()
    attention = 8 * 8 + 8 * 4 + 8 * 4 + 8 * 8
    assert (network.dense, network.head, network.embedding) == (attention + 3 * 8 * 16, 256, 256)
    assert network.parameters == 4 * network.dense + 256, "embedding and head are one matrix"
    assert decoder(tie_word_embeddings=False).parameters == network.parameters + 256


def test_experts_are_counted_apart_from_what_every_token_reads() -> None:
    network = decoder(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=4)
    attention = 192
    assert (network.dense, network.expert) == (attention + 8 * 8, 3 * 8 * 4)
    assert network.parameters == 4 * (network.dense + 8 * network.expert) + 256
    assert network.read == 4 * (network.dense + 2 * network.expert) + 256
    assert network.kernels > decoder().kernels


def test_windows_bound_what_is_attended_to() -> None:
    network = decoder(sliding_window=10, layer_types=["sliding_attention"] * 3 + ["full_attention"])
    assert network.attended(100) == (3 * 10 + 100) / 4
    assert network.attended(6) == 6


def test_a_language_model_within_a_multimodal_configuration() -> None:
    inner = {**LLAMA_70B, "num_hidden_layers": 3}
    assert network_of({"model_type": "x", "text_config": inner}, "x").layers == 3


def test_an_encoder_has_no_cache_and_no_head() -> None:
    config = {**LLAMA_70B, "model_type": "bert", "architectures": ["BertModel"]}
    network = network_of(config, "bert")
    assert (network.kind, network.kv_width, network.head) == ("encoder", 0, 0)


def test_latent_attention_caches_its_latent() -> None:
    sizes = {"kv_lora_rank": 6, "qk_rope_head_dim": 2, "qk_nope_head_dim": 4, "v_head_dim": 4}
    assert decoder(**sizes).kv_width == 8


def test_an_encoder_with_a_decoder_is_refused_not_planned_by_half() -> None:
    with pytest.raises(UnsupportedError, match="give a decoder or an encoder alone"):
        decoder(is_encoder_decoder=True)


def test_everything_that_is_missing_is_told_at_once() -> None:
    with pytest.raises(ModelError) as caught:
        network_of({"hidden_size": 8}, "m")
    assert [problem.place for problem in caught.value.problems] == ["m/config.json"] * 3
    assert "num_attention_heads" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("head_dim", "x"), ("sliding_window_pattern", -2), ("num_hidden_layers", 10**8), ("vocab_size", 1.5)],
)
def test_fields_that_are_no_sizes_are_named(field: str, value: object) -> None:
    with pytest.raises(ModelError) as caught:
        decoder(**{field: value})
    assert caught.value.problems[0].place == f"small/config.json: {field!r}"


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="3 key heads do not divide 4 heads"):
        decoder(num_key_value_heads=3)
