"""Ground floor: the program, its IR, the executable's format and code generation. Imports no other room."""
