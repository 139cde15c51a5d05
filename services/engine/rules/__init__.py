"""The rules of the engine domain. All pure."""
