"""Frontends: a model of a source framework into a Program and a reference that can run it."""
