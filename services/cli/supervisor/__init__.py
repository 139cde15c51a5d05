"""The parent process of `aima up`."""
