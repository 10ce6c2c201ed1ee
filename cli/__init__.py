"""Command line: one file per verb; argument groups build option objects, nothing else."""
