"""Random tests are the same every time in continuous integration; C is compiled once for all workers."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings
from support.once import kept_in
from support.quick_c import compiled_once

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session", autouse=True)
def _made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with compiled_once(shared / "compiled"), kept_in(shared / "once"):
        yield


@pytest.fixture(scope="module", autouse=True)
def _modules_are_not_collected() -> None:
    """What frameworks and tests made when imported, millions of objects, stays: no search for garbage looks.

    Exports and measurements search often, and every search would walk through all of them.
    """
    gc.collect()
    gc.freeze()
