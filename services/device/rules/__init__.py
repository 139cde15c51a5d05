"""The rules of the device domain. All pure."""
