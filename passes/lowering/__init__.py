"""Lowering: a program into one backend's own operators; one folder per backend."""
