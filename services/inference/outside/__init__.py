"""The I/O of the inference domain: engines, peers, and queues of requests."""
