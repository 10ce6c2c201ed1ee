"""Keras on its torch backend, the one the importer traces through."""

from __future__ import annotations

import os
import sys
from types import ModuleType

from ...compiler.errors import ToolError, require


def require_keras() -> ModuleType:
    """Keras 3 on the torch backend. Raises: ToolError if it is missing or runs on another backend."""
    if "keras" not in sys.modules:
        require("torch", extra="keras")
        previous = os.environ.get("KERAS_BACKEND")
        os.environ["KERAS_BACKEND"] = "torch"
        try:
            require("keras", extra="keras")
        finally:
            if previous is None:
                del os.environ["KERAS_BACKEND"]
            else:
                os.environ["KERAS_BACKEND"] = previous
    keras = sys.modules["keras"]
    backend = keras.config.backend()
    if backend != "torch":
        fix = "set KERAS_BACKEND=torch before keras is imported, or save model.keras and give the file"
        raise ToolError("keras", f"runs on the {backend} backend in this process", fix)
    return keras
