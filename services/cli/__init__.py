"""The command line: a door to the units, and the supervisor of `aima up`."""
