"""Text in and out of executables: tokenizer, streaming detokenizer, chat template, text tasks."""

from .detokenizer import Detokenizer
from .tokenizer import Tokenizer

__all__ = ["Detokenizer", "Tokenizer"]
