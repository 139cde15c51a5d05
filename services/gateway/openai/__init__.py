"""OpenAI's API, and reranking as Jina and Cohere have it."""
