"""``--executor``: by what the ranks of a partitioned executable are run, for all verbs that run one."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

Executor: TypeAlias = Annotated[
    str,
    typer.Option(
        "--executor",
        metavar="threads|processes|ray",
        help="What runs the ranks of a partitioned executable; options in braces: ray{address=auto}.",
    ),
]
