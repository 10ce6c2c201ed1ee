"""Passes: program into program, each with options, results and reasons for what it declined."""
