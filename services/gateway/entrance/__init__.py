"""Checks every request before its API: host, key, rate and quota. Also listens on sockets and formats errors."""
