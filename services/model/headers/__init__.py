"""One reader for each file format. A reader returns a `ModelFile`, and checks every number of a header before use."""
