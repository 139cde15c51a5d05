"""The I/O of the service domain: calls to peers, and deadlines."""
