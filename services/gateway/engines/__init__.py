"""The way of a request to an engine and of its answer back, shared by all APIs."""
