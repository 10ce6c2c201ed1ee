"""The native backend: ahead-of-time C for transformer programs, one shared library without dependencies."""
