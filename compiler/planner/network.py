"""A network as the planner sees it: layers, heads, and how much a token computes, reads and moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["decoder", "encoder", "graph"]

KERNELS, EXPERT_KERNELS, PER_LAYER_INPUT_KERNELS = 10, 5, 6
"""Launches of a layer of a fusing engine: norm, qkv, rotary, cache, attention, output, norm, gate and up,
activation, down; of a mixture of experts also router, top-k, permutation, second product, sum; and of a
network whose layers have an input of their own (Gemma) gate, activation, product, projection, norm, sum."""


@dataclass(frozen=True, slots=True)
class Network:
    """Sizes of a network of ``layers`` alike; what is counted are parameters, whatever they are stored in.

    ``kind``: a ``decoder`` writes tokens one after the other, an ``encoder`` reads them all at once, a
    ``graph`` (a CNN, a recommender) has samples instead of tokens. ``hidden``: numbers handed from layer to
    layer for each token. ``dense``: parameters of a layer that every token reads; ``expert``: of one of its
    ``experts``, of which a token reads ``active``. ``inner``: channels of the feed-forward part, of one
    expert where there are some. ``embedding`` is only looked up; ``head`` makes the logits, in the
    embedding's memory if ``tied``. ``kv_width``: numbers a layer caches for a token. ``windowed``: layers
    that attend to the last ``window`` tokens only. ``flops``: of a token, without attention over the
    context, where it is not twice the parameters it reads. ``stored``: bytes of the weights as the model's
    files hold them, where they say.
    """

    name: str
    kind: Kind
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    kv_width: int
    inner: int
    vocabulary: int
    dense: float
    expert: float = 0.0
    experts: int = 0
    active: int = 0
    embedding: float = 0.0
    head: float = 0.0
    tied: bool = False
    context: int | None = None
    window: int | None = None
    windowed: int = 0
    kernels: int = KERNELS
    flops: float | None = None
    stored: float | None = None

    @property
    def parameters(self) -> float:
        """All parameters, tied ones once."""
        layers = self.layers * (self.dense + self.experts * self.expert)
        return layers + self.embedding + (0.0 if self.tied else self.head)

    @property
    def read(self) -> float:
        """Parameters that one token multiplies with: no embedding, active experts only."""
        return self.layers * (self.dense + self.active * self.expert) + self.head

    @property
    def scale(self) -> float:
        """Operations of a token for each parameter that it reads: 2, or more where weights are shared."""
        return 2.0 if self.flops is None or not self.read else self.flops / self.read

    def touched(self, tokens: float) -> float:
        """Experts of a layer that at least one of ``tokens`` reads, when routing is even.

        >>> small = Network("x", "decoder", 1, 8, 1, 1, 8, 16, 8, 8, 1.0, expert=1.0, experts=8, active=2)
        >>> small.touched(1), round(small.touched(1000))
        (2.0, 8)
        """
        if not self.experts:
            return 0.0
        return float(self.experts * (1.0 - (1.0 - self.active / self.experts) ** tokens))

    def attended(self, context: float) -> float:
        """Tokens that a layer attends to, on average over the layers."""
        if not self.windowed or self.window is None:
            return context
        return context + (min(context, float(self.window)) - context) * self.windowed / self.layers

    @property
    def passed(self) -> float:
        """Numbers that a layer reads and writes for a token in the width that ranks do not share.

        Two norms with their residuals (8 times ``hidden``), the ends of the products (4); experts permute
        their inputs and sum their outputs (3 for each that is active).
        """
        return self.hidden * (12.0 + 3.0 * self.active)

    @property
    def split(self) -> float:
        """Numbers that a layer reads and writes for a token in heads and channels, which ranks share.

        Queries, keys and values from product to rotary, attention and output (6 times), gate and up from
        product to activation and down (6 times).
        """
        return 6.0 * (self.heads * self.head_width + self.inner * max(self.active, 1))
