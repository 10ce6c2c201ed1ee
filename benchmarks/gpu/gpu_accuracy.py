"""What a device computes against what it should: golden models against frameworks, text against the CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import miaotui
import numpy as np
from miaotui.frontends.load import load
from miaotui.runtime.compare import difference, tolerance_for

BOUNDS = {"fp32": 1e-3}
"""Scaled error, where it is not the precision's own tolerance: a device adds up in another order."""

PROMPTS = (
    "The capital of France is",
    "Once upon a time there was a small compiler that",
    "one two three four, one two three four, one two",
)


@dataclass(frozen=True, slots=True)
class Checked:
    """``ok``: as it should be; ``told``: the figure and its bound."""

    case: str
    precision: str
    ok: bool
    told: str

    @property
    def note(self) -> str:
        """For a table."""
        return f"{'' if self.ok else 'FAILS: '}{self.told}"


def golden(device: str, precisions: Sequence[str], names: Sequence[str] = ()) -> Iterator[Checked]:
    """Every golden model (or those of ``names``) at three choices of sizes, its worst output."""
    from support.models import MODELS

    for name, model in MODELS.items():
        if name not in names and (names or model.slow):
            continue
        source = model.build()
        reference = load(source, inputs=model.inputs(batch=1)).reference
        single = dict.fromkeys(model.sizes, 1)
        cases = [model.inputs(1, **model.sizes), model.inputs(2, **model.other), model.inputs(3, **single)]
        for precision in precisions:
            bound = BOUNDS.get(precision, tolerance_for(precision))
            with miaotui.compile(
                source, model.inputs(batch=1), target=device, precision=precision, backend="ort",
                verify=False, timing=0.0, keep_source=False,
            ) as executable:  # fmt: skip
                worst = 0.0
                for case in cases:
                    found, wanted = executable.run(case), reference.run(case)
                    worst = max(worst, *(difference(k, found[k], wanted[k]).scaled for k in wanted))
            told = f"scaled error {worst:.1e}, bound {bound:.0e}"
            yield Checked(name, precision, worst <= bound, told)


def stepped(
    device: str, shape: Mapping[str, int], precisions: Sequence[str], steps: int = 24
) -> Iterator[Checked]:
    """Logits over a decoder's own buffers, of a random Llama, fed the same tokens as the CPU in fp32.

    Three rows of different lengths: taken in together, and in chunks of 16 behind each other; then steps.
    """
    from support.big_llama import write_llama

    random = np.random.default_rng(0)
    prompts = [random.integers(3, shape["vocab_size"], size).tolist() for size in (37, 5, 70)]
    fed = random.integers(3, shape["vocab_size"], (steps, len(prompts)))
    with tempfile.TemporaryDirectory() as folder:
        write_llama(Path(folder), dict(shape))

        def logits(target: str, precision: Any) -> dict[str, Any]:
            with miaotui.compile(
                folder, target=target, precision=precision, backend="ort", verify=False, timing=0.0,
                keep_source=False,
            ) as executable:  # fmt: skip
                return {
                    way: _fed(executable.generator(), prompts, fed, way) for way in ("together", "chunks")
                }

        wanted = logits("cpu", "fp32")
        for precision in precisions:
            bound = BOUNDS.get(precision, tolerance_for(precision))
            for way, found in logits(device, precision).items():
                error = difference("logits", found, wanted[way]).scaled
                told = f"scaled error of logits {error:.1e}, bound {bound:.0e}"
                head = shape["hidden_size"] // shape["num_attention_heads"]
                yield Checked(f"heads of {head}, {way}", precision, error <= bound, told)


def _fed(generator: Any, prompts: list[list[int]], fed: Any, way: str) -> Any:
    """float32[1 + steps, rows, vocabulary]: behind the prompts, then behind each row of ``fed``."""
    decoder = generator.decoder(max(map(len, prompts)) + len(fed), len(prompts))
    if way == "together":
        decoder.prefill_together(prompts)
    else:
        for row, ids in enumerate(prompts):
            decoder.prefill(row, ids, 16)
    found = [decoder.logits.astype(np.float32)]
    for tokens in fed:
        decoder.tokens[:, 0] = tokens
        decoder.step()
        found.append(decoder.logits.astype(np.float32))
    return np.stack(found)


def text(device: str, source: Any, tokens: int) -> Iterator[Checked]:
    """Greedy tokens of ``source`` in fp32 behind PROMPTS: those of the device are the CPU's."""
    written: dict[str, list[list[int]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for target in dict.fromkeys(("cpu", device)):
            with miaotui.compile(
                source, output=Path(folder, target), target=target, backend="ort", verify=False,
                timing=0.0, keep_source=False,
            ) as executable:  # fmt: skip
                written[target] = [
                    list(executable.generate(prompt, max_tokens=tokens).ids) for prompt in PROMPTS
                ]
    for prompt, ours, right in zip(PROMPTS, written[device], written["cpu"], strict=True):
        same = next((i for i, (a, b) in enumerate(zip(ours, right, strict=False)) if a != b), len(right))
        told = f"{same} of {len(right)} greedy tokens are the CPU's"
        yield Checked(prompt, "fp32", same == len(right) == len(ours), told)
