"""Partitioned programs: mesh of ranks, sharding of values, the plan of an artefact, simulated ranks."""
