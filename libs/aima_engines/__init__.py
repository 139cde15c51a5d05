"""The one way to an engine, for every door and every domain: connections, answers, errors and the kinds of requests."""
