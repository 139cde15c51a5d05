"""Runs a domain as a process: its single writer, its effects, its followers, and the copies on JetStream."""
