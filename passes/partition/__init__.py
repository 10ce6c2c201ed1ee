"""Partitioning: nodes into pipeline stages, values over replicas, layers over tensor shards."""
