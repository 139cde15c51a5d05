"""The users of the bus and what each may do."""
