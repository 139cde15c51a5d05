"""The bus: sending requests, serving units, and running the nats-server."""
