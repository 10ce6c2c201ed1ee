"""Partitioning: nodes into pipeline stages, values over replicas."""
