"""Small networks and devices with round numbers, for costs that can be computed by hand."""

from __future__ import annotations

from typing import Any

from miaotui.compiler.parallel.mesh import Mesh
from miaotui.compiler.planner.catalogue import GIB, Accelerator, Link
from miaotui.compiler.planner.config import network_of
from miaotui.compiler.planner.constants import Constants, Stack
from miaotui.compiler.planner.network import Network
from miaotui.compiler.planner.step import Cost

LLAMA_70B = {
    "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
    "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip

IDEAL = Constants(1.0, 1.0, 0.0, 0.0, 0.0, 1.0, {"plain": Stack()})
"""Everything is reached and nothing costs besides."""

DEVICE = Accelerator(
    name="round", title="a device of round numbers", memory=10 * GIB, reserve=GIB, bandwidth=1e9,
    rates={"fp32": 1e12, "fp16": 2e12}, node=8,
    link=Link("link", 1e8, 0.0), network=Link("network", 1e7, 0.0),
)  # fmt: skip


def decoder(**changed: Any) -> Network:
    """4 layers of width 8, 4 heads of which 2 are cached, 3 matrices to 16 channels, 32 words, tied."""
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32, "tie_word_embeddings": True,
    }  # fmt: skip
    return network_of({**config, **changed}, "small")


def cost(
    network: Network | None = None,
    mesh: Mesh | None = None,
    device: Accelerator = DEVICE,
    constants: Constants = IDEAL,
    stack: Stack | None = None,
    precision: str = "fp16",
) -> Cost:
    return Cost(
        decoder() if network is None else network,
        device,
        Mesh() if mesh is None else mesh,
        precision,
        "fp16",
        constants,
        Stack() if stack is None else stack,
    )
