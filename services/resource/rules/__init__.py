"""The rules of the resource domain. All pure."""
