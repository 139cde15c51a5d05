"""The event stream over HTTP: server-sent events."""
