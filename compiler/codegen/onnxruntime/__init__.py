"""ONNX Runtime: the kernels it has, the models it opens."""

from .backend import OnnxRuntimeBackend

__all__ = ["OnnxRuntimeBackend"]
