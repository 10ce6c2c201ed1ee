"""Frontend for torch modules, exported programs and ``.pt2`` files."""

from .exported import import_exported, import_pt2
from .files import is_pt2, refuse_pickle, refuse_script
from .importer import import_module
from .reference import module_reference

__all__ = [
    "import_exported",
    "import_module",
    "import_pt2",
    "is_pt2",
    "module_reference",
    "refuse_pickle",
    "refuse_script",
]
