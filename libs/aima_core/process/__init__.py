"""A domain as a running process: its single writer, its effects, its followers, and the copies on JetStream."""
