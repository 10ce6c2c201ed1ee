"""The version of the miaotui that runs: plans and workers of another are refused."""

from __future__ import annotations

from ..conditions import versions


def own_version() -> str:
    """As it was installed; empty if it was not."""
    return versions(("miaotui",)).get("miaotui", "")
