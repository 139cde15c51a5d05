"""What the inference domain awaits: engines, peers, and requests that wait."""
