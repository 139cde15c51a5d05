"""Sends requests over the bus, serves units on it, and runs the nats-server."""
