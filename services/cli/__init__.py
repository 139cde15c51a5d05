"""The command line: a door like the others, and the parent of `aima up`."""
