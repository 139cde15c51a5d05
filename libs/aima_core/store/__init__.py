"""The log of a domain and what is read from it."""
