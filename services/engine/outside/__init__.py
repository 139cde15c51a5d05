"""The I/O of the engine domain: packages, processes, ports, health checks, peers."""
