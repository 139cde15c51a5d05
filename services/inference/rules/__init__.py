"""The rules of the inference domain. All pure."""
