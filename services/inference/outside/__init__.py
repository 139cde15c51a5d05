"""The I/O of the inference domain: requests to engines, calls to peers, and the queues of requests."""
