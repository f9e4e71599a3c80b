"""RAG-Tuned-LLM: from a folder of documents to a judged LoRA adapter that knows them."""

import os

# Weights come from this package or from where a setting says; no process of it phones home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
