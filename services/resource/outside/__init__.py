"""The I/O of the resource domain: measurements of the machine, and calls to peers."""
