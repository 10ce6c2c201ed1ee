"""Runs partitioned programs: ranks as threads, as local processes, or as actors of a Ray cluster."""
