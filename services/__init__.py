"""The domains of AIMA, a folder each, and the command line."""
