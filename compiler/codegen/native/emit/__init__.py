"""Emitting C for nodes: one file per family of operators, each with a table of its emitters."""
