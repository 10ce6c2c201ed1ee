"""Translate English numbers into German: a small T5 is trained, compiled, and run with a cache."""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import T5Config, T5ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

ENGLISH = [
    "",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]
ENGLISH += [f"{stem}teen" for stem in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
GERMAN = [
    "",
    "ein",
    "zwei",
    "drei",
    "vier",
    "fünf",
    "sechs",
    "sieben",
    "acht",
    "neun",
    "zehn",
    "elf",
    "zwölf",
]
GERMAN += [f"{stem}zehn" for stem in ("drei", "vier", "fünf", "sech", "sieb", "acht", "neun")]
ZEHNER = ["zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig", "neunzig"]
WORDS = ["<pad>", "</s>", "<unk>", *ENGLISH[1:], *TENS, "hundred", *GERMAN[1:], *ZEHNER, "und", "hundert"]


def english(n: int) -> str:
    """342 is three hundred forty two."""
    if n >= 100:
        return f"{ENGLISH[n // 100]} hundred {english(n % 100)}".strip()
    return ENGLISH[n] if n < 20 else f"{TENS[n // 10 - 2]} {ENGLISH[n % 10]}".strip()


def german(n: int) -> list[str]:
    """342 is drei-hundert-zwei-und-vierzig."""
    if n >= 100:
        return [GERMAN[n // 100], "hundert", *german(n % 100)]
    if n < 20 or n % 10 == 0:
        return [word for word in [GERMAN[n] if n < 20 else ZEHNER[n // 10 - 2]] if word]
    return [GERMAN[n % 10], "und", ZEHNER[n // 10 - 2]]


def tokenizer() -> Tokenizer:
    """Words; the end of the text behind them; German parts joined to one word."""
    made = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.add_special_tokens(["<pad>", "</s>", "<unk>"])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.decoder = decoders.Fuse()
    return made


def trained(numbers: list[int], tokens: Tokenizer) -> T5ForConditionalGeneration:
    """A T5 of 0.3 million parameters that has seen ``numbers``."""
    torch.manual_seed(0)
    sizes = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    model = T5ForConditionalGeneration(
        T5Config(vocab_size=len(WORDS), decoder_start_token_id=0, **sizes)
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens.enable_padding()
    for step in range(200):
        chosen = random.Random(step).sample(numbers, 64)
        source = torch.tensor([each.ids for each in tokens.encode_batch([english(n) for n in chosen])])
        target = torch.tensor(
            [each.ids for each in tokens.encode_batch([" ".join(german(n)) for n in chosen])]
        )
        labels = target.masked_fill(target == 0, -100)
        loss = model(input_ids=source, attention_mask=(source != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    tokens.no_padding()
    return model.eval()


def main() -> None:
    """Train on two thirds of the numbers below a thousand, translate the others."""
    disable_progress_bar()
    numbers = list(range(1, 1000))
    random.Random(0).shuffle(numbers)
    tokens = tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        trained(numbers[:666], tokens).save_pretrained(folder)
        tokens.save(str(Path(folder, "tokenizer.json")))
        special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
        with miaotui.compile(folder, backend="ort", timing=0.0) as translator:
            new = numbers[666:]
            written = translator.generate([english(n) for n in new], max_tokens=12)
            right = sum(str(made) == "".join(german(n)) for n, made in zip(new, written, strict=True))
            print(f"{right} of {len(new)} numbers that the model has never seen are right\n")
            for text in sys.argv[1:] or [english(n) for n in new[:6]]:
                print(f"{text} → {translator.generate(text, max_tokens=12)}")


if __name__ == "__main__":
    main()
