"""The house rules: who imports whom, what is packaged, what is public, what an import costs; all doctests."""

from __future__ import annotations

import ast
import doctest
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import miaotui
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
    "packages"
]
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist"}
"""Folders of the repository that are not in the package."""

ROOMS: dict[str, set[str]] = {
    "compiler": set(),
    "frontends": {"compiler"},
    "passes": {"compiler"},
    "runtime": {"compiler"},
    "driver": {"compiler", "frontends", "passes", "runtime"},
    "cli": {"compiler", "frontends", "passes", "runtime", "driver", ""},
    "": {"compiler", "frontends", "passes", "runtime", "driver", "cli"},
}
"""Rooms, and the rooms each may import; the face (``__init__``, ``__main__``) is the empty name."""

PUBLIC = {
    "ArtifactError", "CompileError", "InputError", "InternalError", "MiaotuiError", "ModelError",
    "OptionError", "PlacementError", "ToolError", "UnsupportedError", "VerificationError",
    "CompileOptions", "Conversation", "Executable", "Generation", "GenerationOptions", "Program", "Target",
    "__version__",
    "bench", "compile", "load", "open", "verify",
}  # fmt: skip

FRAMEWORKS = {"torch", "keras", "transformers", "tensorflow", "onnxruntime", "openvino", "tvm", "ray"}


def sources() -> Iterator[tuple[str, Path]]:
    """Dotted name below the package and path of every module."""
    for package in PACKAGES:
        folder = ROOT.joinpath(*package.split(".")[1:])
        for path in sorted(folder.glob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


MODULES = dict(sources())


def imports(module: str, path: Path) -> Iterator[str]:
    """Dotted names below the package that ``path`` imports anywhere, inside functions too."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    package = [part for part in package if part]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - (node.level - 1)] + (
                node.module.split(".") if node.module else []
            )
            for alias in node.names:
                full = ".".join([*base, alias.name])
                yield full if full in MODULES else ".".join(base)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "miaotui":
            yield ".".join(node.module.split(".")[1:])
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.split(".")[0] == "miaotui")


def room(module: str) -> str:
    name = module.split(".")[0]
    return name if name in ROOMS else ""


def test_rooms_import_only_what_lies_below_them() -> None:
    broken = [
        f"{module} imports {target or 'the face'}"
        for module, path in MODULES.items()
        for target in imports(module, path)
        if room(target) != room(module) and room(target) not in ROOMS[room(module)]
    ]
    assert broken == []


def test_passes_never_import_code_generation() -> None:
    broken = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target in imports(module, path)
        if module.startswith("passes") and target.startswith("compiler.codegen")
    ]
    assert broken == []


@pytest.mark.parametrize("parent", ["compiler.codegen", "passes.lowering"])
def test_backends_never_import_each_other(parent: str) -> None:
    def backend(name: str) -> str:
        rest = name.removeprefix(parent + ".")
        return (
            rest.split(".")[0]
            if rest != name and f"miaotui.{parent}.{rest.split('.')[0]}" in PACKAGES
            else ""
        )

    broken = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        for target in imports(module, path)
        if backend(module) and backend(target) not in ("", backend(module))
    ]
    assert broken == []


def test_the_package_list_equals_the_folders() -> None:
    folders = {
        ".".join(("miaotui", *path.parent.relative_to(ROOT).parts))
        for path in ROOT.rglob("*.py")
        if (parts := path.relative_to(ROOT).parts)[0] not in OUTSIDE
        and not any(p.startswith(".") for p in parts)
    }
    assert sorted(PACKAGES) == sorted(folders)
    assert sorted(PACKAGES) == PACKAGES


def test_no_stray_modules_at_the_root() -> None:
    assert {path.name for path in ROOT.glob("*.py")} <= {"__init__.py", "__main__.py", "driver.py"}


def test_the_public_names() -> None:
    assert set(miaotui.__all__) == PUBLIC
    assert len(miaotui.__all__) == len(PUBLIC)
    for name in PUBLIC:
        assert getattr(miaotui, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'compiel'"):
        miaotui.compiel


def loaded_frameworks(code: str) -> set[str]:
    code += "; import sys; print(*{name.partition('.')[0] for name in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True)
    return FRAMEWORKS & set(out.stdout.split())


def test_importing_the_package_loads_no_framework() -> None:
    assert loaded_frameworks("import miaotui") == set()


def test_importing_every_module_loads_no_framework() -> None:
    names = [f"miaotui.{name}".rstrip(".") for name in MODULES if name != "__main__"]
    assert loaded_frameworks("import " + ", ".join(names)) == set()


@pytest.mark.parametrize(
    "module", [name for name, path in MODULES.items() if ">>> " in path.read_text("utf-8")]
)
def test_doctests(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"miaotui.{module}".rstrip("."))).failed == 0
