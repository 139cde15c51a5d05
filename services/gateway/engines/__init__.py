"""Sends requests to engines and returns the answers; all HTTP APIs share this code."""
