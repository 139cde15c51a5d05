"""The engine domain. Imports nothing: `llamacpp_server` runs from here and must start fast."""
