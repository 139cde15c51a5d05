"""Units and resources over HTTP, and the OpenAPI document of all paths."""
