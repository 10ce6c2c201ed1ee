"""Runtime: opens executable folders, runs, times and compares them."""
