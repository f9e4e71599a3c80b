"""serving: the promoted adapters behind one OpenAI-compatible address."""
