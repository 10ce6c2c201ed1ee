"""Generation: prompts continued token by token through an executable's entry with a KV cache."""

from .conversation import Conversation
from .generator import Generator
from .options import GenerationOptions
from .result import Generation
from .stream import Stream
from .timings import Timings

__all__ = ["Conversation", "Generation", "GenerationOptions", "Generator", "Stream", "Timings"]
