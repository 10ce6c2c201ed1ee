"""Time of one step of one stage: a roofline with the shares that are reached, kernels, collectives, host."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import cached_property

from ..parallel.mesh import Mesh
from .catalogue import Accelerator
from .collectives import ring_all_reduce, transfer
from .constants import Constants, Stack
from .layout import stage_layers
from .network import Network
from .precision import STORED, arithmetic, cache_bits, weight_bits


@dataclass(frozen=True, slots=True)
class Work:
    """What one step of a replica computes: ``prompt`` tokens read and ``decode`` tokens written.

    ``prompt_context``, ``context``: tokens that each of them attends to, on average. ``chunk``: prompt tokens
    that come together, all if 0. ``held``: sequences under way in the whole replica, which its host keeps
    the books of.
    """

    prompt: float = 0.0
    prompt_context: float = 0.0
    chunk: float = 0.0
    decode: float = 0.0
    context: float = 0.0
    held: float = 0.0

    @property
    def tokens(self) -> float:
        """All tokens of the step."""
        return self.prompt + self.decode

    def fullest(self, ranks: int) -> float:
        """Prompt tokens of the fullest of ``ranks``, over which prompts are divided at random, whole.

        The others wait for it in every layer. Of n chunks the fullest of r ranks gets about
        n/r + √(2 n/r ln r), one at least.

        >>> Work(prompt=100.0, chunk=100.0).fullest(8), round(Work(prompt=6400.0, chunk=1.0).fullest(8))
        (100.0, 858)
        """
        if ranks == 1 or not self.prompt:
            return self.prompt
        chunks = self.prompt / (self.chunk or self.prompt)
        mean = chunks / ranks
        fullest = max(mean + math.sqrt(2 * mean * math.log(ranks)), 1.0)
        return min(fullest, chunks) * self.prompt / chunks


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of a stage by cause; ``operations`` that its rank does, for utilisation.

    ``host`` is what the host adds: nothing where it works while the device does.
    """

    linear: float = 0.0
    attention: float = 0.0
    kernels: float = 0.0
    communication: float = 0.0
    host: float = 0.0
    operations: float = 0.0

    @property
    def seconds(self) -> float:
        """All causes together."""
        return self.linear + self.attention + self.kernels + self.communication + self.host

    def blend(self, other: Step, share: float) -> Step:
        """The average of this step and a ``share`` of ``other`` ones.

        >>> Step(linear=1.0).blend(Step(linear=3.0), 0.25).seconds
        1.5
        """
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(Step))
        return Step(*((1 - share) * one + share * two for one, two in pairs))


@dataclass(frozen=True)
class Cost:
    """The cost model of a network on a mesh of devices."""

    network: Network
    device: Accelerator
    mesh: Mesh
    precision: str
    cache: str
    constants: Constants
    stack: Stack

    @property
    def spread(self) -> int:
        """Over how many ranks of a stage sequences are divided: 1 where all ranks attend to all of them."""
        return self.mesh.tp if self.stack.spread and self.network.experts else 1

    @property
    def shared(self) -> int:
        """Over how many ranks of a stage a layer's attention is divided."""
        return self.mesh.tp // self.spread

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return stage_layers(self.network, self.mesh.pp)

    @cached_property
    def compute(self) -> float:
        """Operations a second of a rank's products."""
        return self.device.rates[arithmetic(self.precision, self.device.rates)] * self.constants.compute

    @cached_property
    def attention_compute(self) -> float:
        """Operations a second of a rank's attention, which is computed in 16 bits at least."""
        wide = "fp32" if self.precision == "fp32" else "fp16"
        return self.device.rates[arithmetic(wide, self.device.rates)] * self.constants.compute

    @cached_property
    def bandwidth(self) -> float:
        """Bytes a second that a rank reads while the others of its node read too."""
        own, shared = self.device.bandwidth, self.device.shared
        most = own if shared is None else min(own, shared / min(self.mesh.size, self.device.node))
        return most * self.constants.memory

    @cached_property
    def weight_bytes(self) -> float:
        """Bytes of a parameter."""
        if self.precision == STORED and self.network.stored is not None:
            return self.network.stored / self.network.parameters
        return weight_bits(self.precision) / 8

    @cached_property
    def cache_bytes(self) -> float:
        """Bytes that a layer caches for a token, on each rank that holds it."""
        ranks = min(self.shared, self.network.kv_heads) if self.network.kv_width else 1
        return self.network.kv_width * cache_bits(self.cache) / 8 / ranks

    @property
    def hidden_bytes(self) -> float:
        """Bytes of a number handed on between layers."""
        return 4.0 if self.precision == "fp32" else 2.0

    def step(self, work: Work, stage: int = -1) -> Step:
        """A stage's time for ``work``; the last stage makes the logits, of one token a sequence."""
        if not work.tokens:
            return Step()
        count, last = self.layers[stage], stage in (-1, self.mesh.pp - 1)
        linear, operations = self._linear(work, count, last)
        attention, more = self._attention(work, count)
        launches = count * self.network.kernels
        kernels = launches * self.constants.kernel
        communication = self._communication(work.tokens) * count
        busy = linear + attention + kernels + communication
        host = self.stack.sequence * work.held / self.spread
        if not self.stack.captured:
            host = max(host + launches * self.constants.launch - busy, 0.0)
        elif self.stack.overlapped and self.mesh.pp == 1:
            host = max(host - busy, 0.0)
        return Step(linear, attention, kernels, communication, host, operations + more)

    def _linear(self, work: Work, count: int, last: bool) -> tuple[float, float]:
        """Seconds and operations of a rank's products, and of moving what is between them."""
        network, tokens = self.network, work.tokens
        own = work.fullest(self.spread) + work.decode / self.spread
        parts = [(network.dense * count / self.shared, own)]
        seconds = operations = 0.0
        if network.experts:
            touched = network.touched(tokens)
            each = tokens * network.active / touched
            parts.append((network.expert * touched * count / self.mesh.tp, each))
        if last and network.head:
            parts.append((network.head / self.shared, (work.decode + bool(work.prompt)) / self.spread))
        for held, met in parts:
            flops = network.scale * held * met
            operations += flops
            read = held * self.weight_bytes / self.bandwidth
            seconds += max(read, flops / self.compute * (1 + self.constants.half / met))
        moved = network.passed * own + network.split * tokens / self.mesh.tp
        return seconds + count * moved * self.hidden_bytes / self.bandwidth, operations

    def _attention(self, work: Work, count: int) -> tuple[float, float]:
        """Seconds and operations of a rank's attention: the cache is read for each token that is written."""
        network = self.network
        each = 4.0 * network.heads * network.head_width * count / self.shared
        context, decode = network.attended(work.context), work.decode / self.spread
        read = context * decode * self.cache_bytes * count
        prompt = each * network.attended(work.prompt_context) * work.fullest(self.spread)
        seconds = read / self.bandwidth + prompt / self.attention_compute
        return seconds, prompt + each * context * decode

    def _communication(self, tokens: float) -> float:
        """Seconds that the ranks of a stage exchange hidden states in a layer.

        Twice a sum where they share attention and feed-forward; where each attends to sequences of its own,
        a gather before the experts and a scattered sum behind them, which is one.
        """
        link = self.device.between(self.mesh.tp)
        size = tokens * self.network.hidden * self.hidden_bytes
        once = ring_all_reduce(size, self.mesh.tp, link.bandwidth * self.constants.link, link.latency)
        return once if self.spread > 1 else 2 * once

    def send(self, tokens: float) -> float:
        """Seconds until the hidden state of ``tokens`` is on the next stage."""
        if self.mesh.pp == 1:
            return 0.0
        link = self.device.between(self.mesh.tp * self.mesh.pp)
        size = tokens * self.network.hidden * self.hidden_bytes / self.mesh.tp
        return transfer(size, link.bandwidth * self.constants.link, link.latency)
