"""The doors: HTTP, the OpenAI, Anthropic and Ollama APIs, and MCP, made from what is on the bus."""
