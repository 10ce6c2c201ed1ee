"""``miaotui chat DIR``: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..compiler.errors import CompileError
from . import arguments as a
from . import generation as g
from .console import stderr
from .executor import Executor
from .failure import report

if TYPE_CHECKING:
    from ..runtime.generate import Conversation

System = Annotated[str | None, typer.Option("--system", "-s", help="System message.")]

HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def chat(
    model: g.Model,
    system: System = None,
    max_tokens: g.MaxTokens = None,
    stop: g.Stop = [],  # noqa: B006 - typer copies it
    speculate: g.Speculate = 0,
    threads: g.Threads = None,
    executor: Executor = "threads",
    temperature: g.Temperature = None,
    top_k: g.TopK = None,
    top_p: g.TopP = None,
    min_p: g.MinP = None,
    repetition_penalty: g.Penalty = None,
    seed: g.Seed = None,
    stats: g.Stats = False,
    quiet: a.Quiet = False,
    verbose: a.Verbose = False,
) -> None:
    """Talk with a model. Without a terminal every line of stdin is a message."""
    options = g.given(
        max_tokens=max_tokens if max_tokens is not None else ANSWER,
        stop=stop,
        speculate=speculate,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    interactive = sys.stdin.isatty()
    with g.opened(model, threads, quiet=quiet, executor=executor) as executable:
        conversation = executable.chat(system, threads=threads, **options)
        if interactive and not quiet:
            stderr().print(HELP, style="dim")
        for line in _typed() if interactive else _piped():
            if line.startswith("/"):
                if _command(line, conversation):
                    break
                continue
            try:
                _answer(conversation, line, stats)
            except CompileError as error:
                if not interactive:
                    raise
                report(error, trace=verbose)


ANSWER = 1024
"""Tokens of an answer at most, unless said otherwise: a model that does not end must not talk for ever."""


def _answer(conversation: Conversation, text: str, stats: bool) -> None:
    stream = conversation.stream(text)
    finished = g.show(stream)
    if stats or not finished:
        g.tell(stream.result)


def _command(line: str, conversation: Conversation) -> bool:
    """Do what the line says; whether to leave."""
    match line.split()[0]:
        case "/exit" | "/quit" | "/bye":
            return True
        case "/reset" | "/clear":
            conversation.reset()
            stderr().print("forgotten", style="dim")
        case _:
            stderr().print(HELP, style="dim")
    return False


def _typed() -> Iterator[str]:
    """Lines that are typed; Ctrl-C drops the line, Ctrl-D ends."""
    import contextlib

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            sys.stdout.write("\n")
            return
        except KeyboardInterrupt:
            stderr().print(f"\n{HELP}", style="dim")
            continue
        if line:
            yield line


def _piped() -> Iterator[str]:
    """Lines of stdin. Raises: InputError for one that is no UTF-8."""
    for number, data in enumerate(sys.stdin.buffer, 1):
        if line := g.decoded(data, f"stdin, line {number}").strip():
            yield line
