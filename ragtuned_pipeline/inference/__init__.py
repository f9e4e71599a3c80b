"""Chat engines: what turns a list of messages into a reply."""
