"""A program's graph as a standalone SVG: boxes for operators, arrows for values, top to bottom."""

from .scene import NODE_LIMIT
from .svg import draw

__all__ = ["NODE_LIMIT", "draw"]
