"""The client for engines that every door and every domain uses: connections, answers, errors, kinds of requests."""
