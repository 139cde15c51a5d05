"""One reader per file format: each turns a header into a `ModelFile` and never trusts a number in it."""
