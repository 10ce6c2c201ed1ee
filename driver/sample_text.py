"""A sample text as token ids: language models are proved on what they are made for, not on noise."""

from __future__ import annotations

import numpy as np

from ..compiler.ir.examples import index_limit
from ..compiler.program import Program
from ..compiler.reference import Array, Arrays

TOKENIZER = "tokenizer/tokenizer.json"
TOKENS = "input_ids"

TEXT = """\
The lighthouse keeper climbed the narrow stairs every evening, counting the steps
although he had known their number for thirty years. From the gallery he could see
the harbour, the fishing boats returning in a loose line, and on clear days the
mountains on the other side of the bay. "A lamp is a promise," his father used to
say, "and a promise is kept at night, when nobody is watching." In winter the storms
came from the north-west, and the sea threw stones as large as fists against the
windows. He wrote the wind speed, the visibility and the names of passing ships into
a book: the Aurora, 412 tons, bound for Bergen; the Two Sisters, with timber; at
23:40 a steamer without lights. Scientists later used these books to study how the
climate of the coast had changed between 1871 and 1924. The average temperature had
risen by 0.8 degrees, the number of stormy days had fallen, and the first spring
flowers were seen about nine days earlier.

How does a compiler turn a program into something faster? It reads the source,
builds a graph of operations, and looks for patterns: a multiplication by one can
go, two loops over the same array can become one, a value that is computed twice can
be kept. For example:

def mean(values):
    total = 0.0
    for value in values:
        total += value
    return total / len(values)

The function above visits each element once, so its cost grows linearly with the
length of the list. 编译器把模型变成可以直接运行的程序,每一步都要与原来的结果比较。Der Vergleich zeigt, ob die
Umformung richtig war. Water boils at 100 °C at sea level; on a mountain of 3,000
metres it boils at about 90 °C, because the air pressure is lower there. That is why
cooking beans takes longer in the Andes than in Lima.
"""


def with_sample_text(program: Program, inputs: Arrays) -> Arrays:
    """``inputs`` with the token ids replaced by those of ``TEXT``, if the program has a tokenizer.

    Rows begin at different places. Left as they are if an id lies outside the table of embeddings.
    """
    if TOKENS not in inputs or inputs[TOKENS].ndim != 2:
        return inputs
    ids = token_ids(program, TEXT)
    limit = index_limit(program, TOKENS)
    if not len(ids) or limit is None or ids.max() >= limit:
        return inputs
    batch, length = inputs[TOKENS].shape
    starts = np.arange(batch) * (len(ids) // max(batch, 1))
    places = (starts[:, None] + np.arange(length)) % len(ids)
    return {**inputs, TOKENS: ids[places].astype(inputs[TOKENS].dtype)}


def token_ids(program: Program, text: str) -> Array:
    """int64[tokens]: ``text`` by the program's tokenizer; none if it has none, or a damaged one."""
    from tokenizers import Tokenizer

    asset = program.assets.get(TOKENIZER)
    if asset is None:
        return np.zeros(0, np.int64)
    data = asset if isinstance(asset, bytes) else asset.read_bytes()
    try:
        tokenizer = Tokenizer.from_buffer(data)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return np.array(tokenizer.encode(text).ids, np.int64)
    except Exception:  # what the library raises for a damaged file has no type of its own
        return np.zeros(0, np.int64)
