"""Frontend for Keras 3 models and ``.keras`` files."""

from .importer import import_keras

__all__ = ["import_keras"]
