"""The kinds of requests to engines: a table, and for each kind the code that writes the body and reads the answer."""
