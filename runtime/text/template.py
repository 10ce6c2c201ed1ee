"""ChatTemplate: messages into the text a model was trained to continue."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateSyntaxError

from ...compiler.errors import InputError, ModelError
from .sandbox import ExceededError, RefusedError, Sandbox, SecurityError, render

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Fields under which a message may hold its reasoning; templates read the first."""

LONGEST = 1 << 20
"""Characters of a template's source."""


class ChatTemplate:
    """A jinja template from a model's files: not trusted, so it runs in a sandbox with bounds.

    Raises: ModelError for one that does not parse.
    """

    __slots__ = ("_place", "_template")

    def __init__(self, source: str, place: str) -> None:
        self._place = place
        if len(source) > LONGEST:
            raise ModelError(place, f"has more than {LONGEST:,} characters", "this is no chat template")
        try:
            self._template = Sandbox().from_string(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"{place}: line {error.lineno}", str(error.message)) from None
        except Exception as error:  # what is nested too deeply fails in many ways
            raise ModelError(place, f"does not compile: {_first(error)}") from None

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt for ``messages``; ``variables`` reach the template.

        Raises: InputError for messages of another form or that the template refuses; ModelError if the
        template fails or does not stay within its bounds.
        """
        given = [_plain(message) for message in _listed(messages)]
        for place, message in enumerate(given):
            if not isinstance(message, dict):
                fact = f"is a {type(messages[place]).__name__}, no mapping"
                raise InputError(f"message {place}", fact, 'give {"role": "user", "content": "…"}')
        plain = {
            "tools": None,
            "documents": None,
            **{name: _plain(value) for name, value in variables.items()},
        }
        try:
            return render(self._template, {**plain, "messages": [_aliased(message) for message in given]})
        except RefusedError as error:
            raise InputError("messages", f"the chat template refuses them: {error.message}") from None
        except SecurityError as error:
            raise ModelError(self._place, f"reaches for what it may not: {error.message}") from None
        except ExceededError as error:
            raise ModelError(self._place, str(error)) from None
        except RecursionError:
            raise ModelError(self._place, "calls itself without end") from None
        except Exception as error:  # a template's operations raise whatever Python's do
            fact = f"fails on these messages: {type(error).__name__}: {_first(error)}"
            raise ModelError(self._place, fact) from None


def _listed(messages: object) -> Sequence[Any]:
    if isinstance(messages, Sequence) and not isinstance(messages, str | bytes):
        return messages
    fact = f"are a {type(messages).__name__}, no list"
    raise InputError("messages", fact, 'give [{"role": "user", "content": "…"}]')


def _plain(value: Any) -> Any:
    """``value`` of JSON's types alone: objects with methods have no place in a sandbox."""
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return f"<{type(value).__name__}>"


def _aliased(message: dict[str, Any]) -> dict[str, Any]:
    found = next((message[key] for key in REASONING if message.get(key) is not None), None)
    return message if found is None else {"thinking": found, **message, "reasoning_content": found}


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:240]
