"""Code generation through TVM: Relax functions from the IR, one shared library."""
