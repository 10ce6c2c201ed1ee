"""raising."""
