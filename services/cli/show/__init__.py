"""What the command line shows: tables, documents, a conversation."""
