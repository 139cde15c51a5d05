"""The gateway: doors for HTTP, the OpenAI, Anthropic and Ollama APIs, MCP and gRPC, over the units on the bus."""
