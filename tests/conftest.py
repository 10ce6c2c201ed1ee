"""Random tests are the same every time in continuous integration; C is compiled once for all workers."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from support.once import kept_in
from support.quick_c import compiled_once

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

gc.set_threshold(10_000, 10, 10)  # an export makes millions of objects; nearly all die with their last reader


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = "MIAOTUI_TESTS_SHARED"
"""Names the folder of this run, for the pytests that tests start."""


@pytest.fixture(scope="session", autouse=True)
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    shared = Path(os.environ.get(SHARED) or (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base))
    made = {SHARED: str(shared)}
    with compiled_once(shared / "compiled"), kept_in(shared / "once"), patch.dict(os.environ, made):
        yield


@pytest.fixture(scope="module", autouse=True)
def _modules_are_not_collected() -> None:
    """What frameworks and tests made when imported, millions of objects, stays: no search for garbage looks.

    Exports and measurements search often, and every search would walk through all of them.
    """
    gc.collect()
    gc.freeze()
