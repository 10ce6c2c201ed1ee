"""Runtime: opens executable folders, runs, times and compares them. Knows the compiler only by artifact.py."""
