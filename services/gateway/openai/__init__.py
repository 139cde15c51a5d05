"""OpenAI's API, and the rerank API of Jina and Cohere."""
