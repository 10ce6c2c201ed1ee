"""``miaotui doctor``: is this machine ready, and the exact command for what is missing."""

from __future__ import annotations

import typer

from . import arguments as a
from .console import Format, print_json, stdout

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(output_format: a.FormatOption = Format.table, verbose: a.Verbose = False) -> None:
    """Build a session of every provider and check what compile and run need."""
    from ..runtime.doctor import diagnose

    findings = diagnose()
    failed = any(f.status == "fail" for f in findings)
    if output_format is Format.json:
        entries = [{"check": f.check, "status": f.status, "fact": f.fact, "fix": f.fix} for f in findings]
        print_json({"schema": 1, "ok": not failed, "findings": entries})
    else:
        from rich.text import Text

        from .tables import put, table

        made = table("", "check", "fact", "fix")
        for f in findings:
            made.add_row(Text(f.status, style=STYLES.get(f.status, "")), f.check, f.fact, f.fix)
        put(stdout(), made)
    if failed:
        raise typer.Exit(1)
