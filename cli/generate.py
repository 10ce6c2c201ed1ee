"""``miaotui generate DIR PROMPT``: continue text, streamed on stdout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import arguments as a
from . import generation as g
from .console import Format, print_json, stderr
from .executor import Executor
from .failure import INTERRUPTED

if TYPE_CHECKING:
    from ..runtime.executable import Executable
    from ..runtime.generate import Generation

Prompt = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="Text to continue; - or nothing reads stdin.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", "-f", metavar="FILE", help="One prompt a line, run together; - is stdin."),
]
Rows = Annotated[int, typer.Option("--rows", min=1, help="Prompts of --file that run together.")]
Chat = Annotated[bool, typer.Option("--chat", help="Give the prompt as a message, by the chat template.")]
System = Annotated[str | None, typer.Option("--system", help="System message; implies --chat.")]
Logprobs = Annotated[
    int | None, typer.Option("--logprobs", min=0, max=100, help="With --format json: of the N likeliest.")
]


def generate(
    model: g.Model,
    prompt: Prompt = None,
    file: File = None,
    chat: Chat = False,
    system: System = None,
    max_tokens: g.MaxTokens = None,
    stop: g.Stop = [],  # noqa: B006 - typer copies it
    ignore_eos: g.IgnoreEos = False,
    speculate: g.Speculate = 0,
    rows: Rows = 8,
    threads: g.Threads = None,
    executor: Executor = "threads",
    temperature: g.Temperature = None,
    top_k: g.TopK = None,
    top_p: g.TopP = None,
    min_p: g.MinP = None,
    repetition_penalty: g.Penalty = None,
    seed: g.Seed = None,
    logprobs: Logprobs = None,
    stats: g.Stats = False,
    output_format: a.FormatOption = Format.table,
    quiet: a.Quiet = False,
    verbose: a.Verbose = False,
) -> None:
    """Continue a prompt. Ctrl-C ends the text and keeps what was written."""
    options = g.given(
        max_tokens=max_tokens,
        stop=stop,
        ignore_eos=ignore_eos,
        speculate=speculate,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        logprobs=logprobs,
    )
    texts = _prompts(prompt, file)
    prompts = [_messages(text, system) if chat or system is not None else text for text in texts]
    with g.opened(model, threads, quiet=quiet, executor=executor) as executable:
        if file is None and output_format is Format.table:
            finished = _stream(executable, prompts[0], threads, options, stats)
        else:
            finished = _batch(executable, prompts, rows, threads, options, stats, output_format)
    if not finished:
        raise typer.Exit(INTERRUPTED)


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    from ..compiler.errors import OptionError

    if file is not None:
        if prompt is not None:
            raise OptionError("--file", "can't be given together with a prompt", "give one of them")
        lines = [line for line in g.read_text(str(file)).splitlines() if line.strip()]
        if not lines:
            raise OptionError("--file", f"{file} holds no prompt", "write one a line")
        return lines
    if prompt is None and sys.stdin.isatty():
        raise OptionError("PROMPT", "is missing", "give the text to continue, or pipe it in")
    return [g.read_text("-") if prompt in (None, "-") else str(prompt)]


def _messages(text: str, system: str | None) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]


def _stream(
    executable: Executable, prompt: Any, threads: int | None, options: dict[str, Any], stats: bool
) -> bool:
    stream = executable.stream(prompt, threads=threads, **options)
    finished = g.show(stream)
    if stats or not finished:
        g.tell(stream.result)
    return finished


def _batch(
    executable: Executable,
    prompts: list[Any],
    rows: int,
    threads: int | None,
    options: dict[str, Any],
    stats: bool,
    output_format: Format,
) -> bool:
    """All prompts, ``rows`` at a time; those that are done are shown also after Ctrl-C."""
    made: list[Generation] = []
    finished = True
    try:
        for at in range(0, len(prompts), rows):
            part = executable.generate(prompts[at : at + rows], rows=rows, threads=threads, **options)
            made.extend(part)
            if output_format is Format.table:
                for generation in part:
                    sys.stdout.write(f"{generation.text}\n")
                sys.stdout.flush()
            if stats:
                g.tell(part[-1])
    except KeyboardInterrupt:
        finished = False
        stderr().print(f"interrupted after {len(made)} of {len(prompts)} prompts", soft_wrap=True)
    if output_format is Format.json:
        print_json({"schema": 1, "generations": [generation.to_json() for generation in made]})
    return finished
