"""Texts to calibrate and evaluate language models on that every Python carries: its documentation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

WINDOW = 512
"""Tokens of one window; each is read by itself."""

SHORT = 40
"""Characters below which a paragraph, such as a line of code, may stand in both texts."""


def documentation() -> tuple[str, str]:
    """Two texts of Python's language reference (PSF licence): to calibrate on, and to evaluate on.

    The topics in alphabetic order, in turn for the one and the other. Topics quote each other: a paragraph
    stays where it is first, and none of those evaluated on is in the text to calibrate on.
    """
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    seen: set[str] = set()
    evaluated = _new_paragraphs(texts[1::2], seen)
    return _new_paragraphs(texts[::2], seen), evaluated


def _new_paragraphs(texts: Iterable[str], seen: set[str]) -> str:
    """The texts without paragraphs that are in ``seen``, which grows."""
    kept = []
    for text in texts:
        for part in text.strip().split("\n\n"):
            plain = " ".join(part.split())
            if len(plain) < SHORT or plain not in seen:
                kept.append(part)
                seen.add(plain)
    return "\n\n".join(kept)


def windows(text: str, tokenizer: Path, count: int, length: int = WINDOW) -> Array:
    """``text`` in tokens, int64[count, length], spread evenly over it, none twice.

    Raises: SystemExit if it has fewer.
    """
    from tokenizers import Tokenizer

    ids = np.array(Tokenizer.from_file(str(tokenizer)).encode(text).ids, np.int64)
    whole = ids[: len(ids) // length * length].reshape(-1, length)
    if len(whole) < count:
        raise SystemExit(f"the text has {len(ids)} tokens, {count} windows of {length} were asked for")
    return whole[np.arange(count) * len(whole) // count]
