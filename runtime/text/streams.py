"""Decoders of the tokenizers library as streams: tokens go in one by one, final pieces of text come out.

Every stream gives, over all tokens, exactly the pieces that the library's decoder of the same name gives
for the whole list; it holds back what a later token could still change.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol


class Stream(Protocol):
    """One decoder: ``push`` a piece, get the pieces that became final; ``end`` gives the rest."""

    def push(self, piece: str) -> list[str]:
        """Pieces that are final now."""
        ...

    def end(self) -> list[str]:
        """What was held back."""
        ...


class Mapped:
    """Each piece by itself; ``first`` is the function for the first one."""

    def __init__(self, each: Callable[[str], str], first: Callable[[str], str] | None = None) -> None:
        self._each, self._next = each, first or each

    def push(self, piece: str) -> list[str]:
        """The piece, changed."""
        changed, self._next = self._next(piece), self._each
        return [changed]

    def end(self) -> list[str]:
        """Nothing is held back."""
        return []


class Bytes:
    """Byte-level BPE: every character of a piece stands for a byte; characters come out when complete."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: str) -> list[str]:
        """The characters that ``piece`` completes."""
        try:
            data = bytes(BYTES[character] for character in piece)
        except KeyError:  # an added token that is plain text
            data = piece.encode("utf-8")
        return [self._decoder.decode(data)]

    def end(self) -> list[str]:
        """U+FFFD if the last character is incomplete."""
        return [self._decoder.decode(b"", final=True)]


class ByteFallback:
    """Runs of ``<0xHH>`` are UTF-8 text; the whole run is U+FFFD per byte if it is not."""

    def __init__(self) -> None:
        self._run = bytearray()

    def push(self, piece: str) -> list[str]:
        """Nothing while the run goes on: a later byte can still spoil all of it."""
        if len(piece) == 6 and re.fullmatch(r"<0x[+0-9A-Fa-f][0-9A-Fa-f]>", piece):
            self._run.append(int(piece[3:5], 16))
            return []
        return [*self.end(), piece]

    def end(self) -> list[str]:
        """The run's text."""
        if not self._run:
            return []
        try:
            text = self._run.decode("utf-8")
        except UnicodeDecodeError:
            text = "\ufffd" * len(self._run)
        self._run.clear()
        return [text]


class Strip:
    """Take up to ``start`` and ``stop`` times ``content`` off the ends of all that passes, as one text."""

    def __init__(self, content: str, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop
        self._held = ""

    def push(self, piece: str) -> list[str]:
        """The piece without its stripped start, less what may prove to be the end."""
        while self._start and piece:
            if not piece.startswith(self._content):
                self._start = 0
                break
            piece, self._start = piece[1:], self._start - 1
        text = self._held + piece
        kept = len(text)
        while kept > max(0, len(text) - self._stop) and text[kept - 1] == self._content:
            kept -= 1
        self._held = text[kept:]
        return [text[:kept]]

    def end(self) -> list[str]:
        """Nothing: what is held now is the end that is stripped."""
        return []


class Suffix:
    """``BPEDecoder``: a suffix that ends words becomes a space, except in the last piece."""

    def __init__(self, suffix: str) -> None:
        self._suffix = suffix
        self._held: str | None = None

    def push(self, piece: str) -> list[str]:
        """The piece before."""
        before, self._held = self._held, piece
        return [] if before is None else [before.replace(self._suffix, " ")]

    def end(self) -> list[str]:
        """The last piece."""
        return [] if self._held is None else [self._held.replace(self._suffix, "")]


class Whole:
    """A decoder whose pieces depend on later ones: all is held back and decoded at the end."""

    def __init__(self, decode: Callable[[list[str]], str]) -> None:
        self._decode = decode
        self._tokens: list[str] = []

    def push(self, piece: str) -> list[str]:
        """Nothing."""
        self._tokens.append(piece)
        return []

    def end(self) -> list[str]:
        """Everything."""
        return [self._decode(self._tokens)] if self._tokens else []


def streams_of(state: Mapping[str, Any] | None, decode: Callable[[list[str]], str]) -> Sequence[Stream]:
    """The streams that together are the decoder with configuration ``state``; ``decode`` is the decoder."""
    if state is None:
        return [Mapped(lambda piece: " " + piece, str)]
    listed = state["decoders"] if state["type"] == "Sequence" else [state]
    made: list[Stream] = []
    fused = False
    for each in listed:
        stream = _stream(each, fused)
        if stream is None:
            return [Whole(decode)]
        fused = fused or each["type"] in ("Fuse", "ByteLevel")
        if each["type"] != "Fuse":
            made.append(stream)
    return made


def _stream(state: Mapping[str, Any], fused: bool) -> Stream | None:
    """The stream of one decoder, behind one that joins all pieces if ``fused``; None if it is not local."""
    kind = state["type"]
    if kind == "Fuse":
        return Mapped(str)
    if kind == "Strip" and len(state["content"]) == 1:
        content, start, stop = state["content"], state["start"], state["stop"]
        return (
            Strip(content, start, stop)
            if fused
            else Mapped(lambda piece: _strip(piece, content, start, stop))
        )
    if kind == "Replace" and "String" in state["pattern"]:
        old, new = state["pattern"]["String"], state["content"]
        return Mapped(lambda piece: piece.replace(old, new)) if old and (len(old) == 1 or not fused) else None
    if fused:
        return None
    if kind == "ByteLevel":
        return Bytes()
    if kind == "ByteFallback":
        return ByteFallback()
    if kind == "WordPiece":
        return _word_pieces(state["prefix"], state["cleanup"])
    if kind == "Metaspace":
        mark = state["replacement"]
        drop = "" if state.get("prepend_scheme", "always") != "never" else " "
        return Mapped(lambda piece: piece.replace(mark, " "), lambda piece: piece.replace(mark, drop))
    if kind == "BPEDecoder":
        return Suffix(state["suffix"]) if state["suffix"] else None
    return None


def _strip(piece: str, content: str, start: int, stop: int) -> str:
    first, last = 0, len(piece)
    while first < min(start, len(piece)) and piece[first] == content:
        first += 1
    while last > max(0, len(piece) - stop) and piece[last - 1] == content:
        last -= 1
    return piece[first:last]


def _word_pieces(prefix: str, cleanup: bool) -> Stream:
    tidy = _tidy if cleanup else str

    def follow(piece: str) -> str:
        return tidy(piece.removeprefix(prefix) if piece.startswith(prefix) else " " + piece)

    return Mapped(follow, tidy)


def _tidy(piece: str) -> str:
    for old, new in TIDIED:
        piece = piece.replace(old, new)
    return piece


TIDIED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"),
    (" do not", " don't"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What the WordPiece decoder's cleanup replaces in each piece, in order."""


def _byte_characters() -> dict[str, int]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTES = _byte_characters()
"""The byte each character of a byte-level token stands for. Source: GPT-2's ``bytes_to_unicode``."""
