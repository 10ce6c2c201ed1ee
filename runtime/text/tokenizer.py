"""Tokenizer: text into token ids and back, as the source's tokenizer does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self, TypeVar

from ...compiler.artifact import Artifact
from ...compiler.errors import InputError, ModelError
from .detokenizer import Detokenizer
from .files import AGAIN, TokenizerFiles, read_files

T = TypeVar("T")


class Tokenizer:
    """A tokenizer of the tokenizers library with its special tokens and chat template.

    ``vocabulary``: how many ids the model has; an id beyond them is refused, with the token's name.

    >>> tokenizer = Tokenizer.open("model.miaotui")  # doctest: +SKIP
    >>> tokenizer.decode(tokenizer.encode("Hello 世界"))  # doctest: +SKIP
    'Hello 世界'
    """

    __slots__ = (
        "_files", "_limit", "_special", "_templates", "backend", "bos_id", "eos_ids", "pad_id", "vocabulary"
    )  # fmt: skip

    def __init__(self, files: TokenizerFiles, vocabulary: int | None = None) -> None:
        self._files = files
        self.backend = _parsed(files)
        self.vocabulary: int = self.backend.get_vocab_size(with_added_tokens=True)
        """How many tokens there are, added ones included."""
        self._limit = vocabulary
        base = self.backend.get_vocab_size(with_added_tokens=False)
        if vocabulary is not None and base > vocabulary:
            fact = f"the tokenizer has {base} tokens, the model's vocabulary {vocabulary}"
            raise ModelError(files.place, fact, "give the tokenizer that belongs to the model")
        added = self.backend.get_added_tokens_decoder()
        self._special = frozenset(number for number, token in added.items() if token.special)
        self.bos_id = self.id_of("bos_token")
        self.pad_id = self.id_of("pad_token")
        eos = self.id_of("eos_token")
        self.eos_ids: frozenset[int] = frozenset(files.eos or (() if eos is None else (eos,)))
        """Tokens that end a generation: the generation config's, else the tokenizer's."""
        self._templates: dict[str, Any] = {}

    @classmethod
    def open(cls, source: Artifact | str | PathLike[str], vocabulary: int | None = None) -> Self:
        """The tokenizer of an executable folder, opened or not, or of any folder with a tokenizer.json.

        Raises: ModelError for missing or malformed files, and for one with more tokens than the model.
        """
        if not isinstance(source, Artifact):
            return cls(read_files(Path(source)), vocabulary)
        if vocabulary is None and source.manifest.decoding is not None:
            vocabulary = source.manifest.decoding.vocabulary
        return cls(read_files(source.folder), vocabulary)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of ``text``; with ``special``, those the model expects around it (BOS, CLS, …) too.

        Special tokens inside the text are read as such. Raises: InputError for text that is no Unicode.
        """
        ids = _checked(lambda: self.backend.encode(text, add_special_tokens=special).ids, [text])
        return self._within(ids)

    def encode_batch(self, texts: Iterable[str], special: bool = True) -> list[list[int]]:
        """Ids of each text, as ``encode``."""
        listed = list(texts)
        encoded = _checked(lambda: self.backend.encode_batch_fast(listed, add_special_tokens=special), listed)
        return [self._within(each.ids) for each in encoded]

    def encode_pair(self, first: str, second: str) -> tuple[list[int], list[int]]:
        """Ids and token types (0 and 1) of two texts as one sequence, special tokens included."""
        encoded = _checked(lambda: self.backend.encode(first, second or None), [first, second])
        return self._within(encoded.ids), encoded.type_ids

    def encodings(self, texts: Sequence[str | tuple[str, str]], length: int) -> list[Any]:
        """Encodings (ids, type_ids, offsets) of texts and pairs, of at most ``length`` with special tokens.

        A longer text is cut at its end, of a pair the longer one. Raises: as ``encode``.
        """
        parts = [part for text in texts for part in (text if isinstance(text, tuple) else (text,))]
        encode = self.backend.encode_batch
        encoded = iter(_checked(lambda: encode(parts, add_special_tokens=False), parts))
        made = []
        for text in texts:
            one = next(encoded)
            second = next(encoded) if isinstance(text, tuple) else None
            other = second if text[1:] != ("",) else None  # transformers takes (text, "") for a single text
            room = max(0, length - self.backend.num_special_tokens_to_add(is_pair=other is not None))
            for part, most in zip((one, other), _longest_first(one, other, room), strict=True):
                if part is not None and len(part.ids) > most:
                    part.truncate(most)
            made.append(self.backend.post_process(one, other))
            self._within(made[-1].ids)
        return made

    def windows(self, first: str, second: str, length: int, stride: int) -> list[Any]:
        """``first`` with ``second`` cut into windows of at most ``length`` tokens together.

        Neighbours share ``stride`` tokens of the second text. Encodings of the tokenizers library: ids,
        type_ids, offsets (in characters), sequence_ids. Raises: InputError if ``first`` leaves no room.
        """
        head = _checked(lambda: self.backend.encode(first, add_special_tokens=False), [first])
        tail = _checked(lambda: self.backend.encode(second, add_special_tokens=False), [second])
        room = length - len(head.ids) - self.backend.num_special_tokens_to_add(is_pair=True)
        if room <= stride:
            fact = f"has {len(head.ids)} tokens, which leaves {max(room, 0)} of {length} for the other text"
            raise InputError("question", fact, "shorten it")
        tail.truncate(room, stride=stride)
        made = [self.backend.post_process(head, part) for part in (tail, *tail.overflowing)]
        for each in made:
            self._within(each.ids)
        return made

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ``ids``; ids of no token give nothing. Raises: InputError for negative ids."""
        listed = [int(number) for number in ids]
        if wrong := [number for number in listed if not 0 <= number < 1 << 32]:
            raise InputError("ids", f"{wrong[0]} is no token id")
        decode = self.backend.decode
        return str(_guarded(lambda: decode(listed, skip_special_tokens=skip_special), self._files.place))

    def detokenizer(self, skip_special: bool = True) -> Detokenizer:
        """A new stream from ids to text."""
        return Detokenizer(self.backend, self._special if skip_special else frozenset())

    def id_of(self, name: str) -> int | None:
        """Id of the special token called ``name`` (``eos_token``, ``sep_token``); None if there is none."""
        token = self._files.special.get(name)
        return None if token is None else self.backend.token_to_id(token)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens: what ``skip_special`` leaves out."""
        return self._special

    @property
    def has_chat_template(self) -> bool:
        """Whether ``chat`` can be used."""
        return bool(self._files.templates)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text for ``messages`` (``{"role": "user", "content": "…"}``) by the chat template.

        It holds its special tokens already: encode it with ``special=False``. ``variables`` reach the
        template (``tools``, ``enable_thinking``). Raises: InputError for messages that the template refuses;
        ModelError for a missing or malformed template, or one that does not stay within its bounds.
        """
        from .template import ChatTemplate

        templates = self._files.templates
        name = "tool_use" if variables.get("tools") and "tool_use" in templates else "default"
        if name not in templates:
            fact = f"has no chat template{f' {name!r}' if templates else ''}"
            raise ModelError(self._files.place, fact, "generate from plain text")
        if name not in self._templates:
            self._templates[name] = ChatTemplate(templates[name], f"{self._files.place}: chat template")
        made: str = self._templates[name].render(
            messages, add_generation_prompt=add_generation_prompt, **{**self._files.special, **variables}
        )
        return made

    def _within(self, ids: list[int]) -> list[int]:
        if self._limit is not None and ids and max(ids) >= self._limit:
            token = self.backend.id_to_token(max(ids))
            fact = f"token {token!r} has id {max(ids)}, the model's vocabulary has {self._limit}"
            raise InputError("text", fact, "leave the token out")
        return ids


def _longest_first(one: Any, other: Any, room: int) -> tuple[int, int]:
    """Most tokens of each of two sequences that share ``room``: the longer one gives way."""
    if other is None:
        return room, 0
    short, long = sorted((len(one.ids), len(other.ids)))
    if short + long > room:
        long = short if short > room else max(short, room - short)
        if short + long > room:
            short, long = room // 2, room - room // 2
    return (short, long) if len(one.ids) <= len(other.ids) else (long, short)


def _parsed(files: TokenizerFiles) -> Any:
    from tokenizers import Tokenizer as Backend

    backend = _guarded(lambda: Backend.from_str(files.definition), files.place)
    backend.no_truncation()
    backend.no_padding()
    return backend


def _guarded(call: Callable[[], T], place: str) -> T:
    """The result of a call into the library; its errors and panics as ModelError."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a panic of the library is no Exception
        raise ModelError(f"{place}: tokenizer.json", f"can't be used: {_first(error)}", AGAIN) from None


def _checked(call: Callable[[], T], texts: Sequence[object]) -> T:
    """The result of encoding ``texts``. Raises: InputError naming the one that is no text."""
    try:
        return call()
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        for place, text in enumerate(texts):
            name = "text" if len(texts) == 1 else f"text {place}"
            if not isinstance(text, str):
                raise InputError(name, f"is a {type(text).__name__}, no str") from None
            at = next((i for i, character in enumerate(text) if 0xD800 <= ord(character) < 0xE000), None)
            if at is not None:
                fact = f"is no Unicode text: a lone surrogate (U+{ord(text[at]):04X}) at character {at}"
                raise InputError(name, fact, "decode the bytes with errors='replace'") from None
        raise ModelError("tokenizer.json", f"can't encode: {_first(error)}", AGAIN) from None


def _first(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
