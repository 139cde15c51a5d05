"""The rules of the model domain. All pure."""
