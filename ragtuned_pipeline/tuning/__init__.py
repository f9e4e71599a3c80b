"""Base models, LoRA tuning in a process of its own, and the adapter store."""
