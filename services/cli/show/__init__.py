"""The output of the command line: tables, documents, a conversation."""
