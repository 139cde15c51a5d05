"""The rules of the service domain. All pure."""
