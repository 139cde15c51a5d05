"""One reader per file format. Each returns a `ModelFile` and checks every number in the header before its use."""
