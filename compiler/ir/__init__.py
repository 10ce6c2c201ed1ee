"""Our discipline over onnx_ir: verifier, printer, provenance, rewriting, shapes, reference evaluation."""
