"""miaotui: from a model description to a proved and timed executable."""

__version__ = "0.1.0"
