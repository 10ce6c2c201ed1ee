"""Text in and out of executables: tokenizer, streaming detokenizer, chat template, text tasks."""

from .answering import Answer, answer
from .classification import Classification, classify
from .detokenizer import Detokenizer
from .embedding import embed
from .encoder import Text, TextEncoder
from .tokenizer import Tokenizer

__all__ = [
    "Answer",
    "Classification",
    "Detokenizer",
    "Text",
    "TextEncoder",
    "Tokenizer",
    "answer",
    "classify",
    "embed",
]
