"""The command line's entry points: ``miaotui VERB`` and ``compile``, which is ``miaotui compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from .bench import bench
from .cache import cache
from .chat import chat
from .compile import compile_model
from .doctor import doctor
from .embed import embed
from .failure import Verb
from .generate import generate
from .inspect import inspect
from .passes import passes
from .plan import plan
from .run import run
from .verify import verify

VERBS: dict[str, Callable[..., None]] = {
    "compile": compile_model,
    "run": run,
    "generate": generate,
    "embed": embed,
    "chat": chat,
    "bench": bench,
    "verify": verify,
    "inspect": inspect,
    "passes": passes,
    "plan": plan,
    "doctor": doctor,
    "cache": cache,
}

_HELP: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}, "cls": Verb}

app = typer.Typer(
    help="From a model description to a proved and timed executable.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
compile_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(f"miaotui {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
]


@app.callback()
def _miaotui(version: Version = False) -> None:
    """From a model description to a proved and timed executable."""


for _name, _function in VERBS.items():
    app.command(_name, **_HELP)(_function)
compile_app.command("compile", **_HELP)(compile_model)


def main() -> None:
    """``miaotui VERB …``."""
    app(prog_name="miaotui")


def compile_main() -> None:
    """``compile MODEL …``."""
    compile_app(prog_name="compile")
