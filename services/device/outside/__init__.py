"""The I/O of the device domain: calls to its drivers."""
