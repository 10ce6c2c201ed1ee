"""Code generation: a lowered program into the files a runtime executes."""
