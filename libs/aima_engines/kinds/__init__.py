"""The kinds of requests: a table, and for each kind how its body is written and its answer read."""
