"""The float kernels compiled once for each instruction set that this CPU runs."""

from __future__ import annotations

import pytest
from miaotui.compiler.codegen.isa import ISAS, can_run
from native.float_cases import Kernels
from support.quick_c import plain


@pytest.fixture(
    scope="session", params=[isa for isa in ISAS.values() if can_run(isa)], ids=lambda isa: isa.name
)
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    """Warnings are errors. A spec that is known only when it runs needs no -O3."""
    return Kernels(tmp_path_factory.mktemp("float"), request.param, (*plain(), "-Werror"))
