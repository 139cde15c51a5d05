"""The users of the bus and the rights of each user."""
