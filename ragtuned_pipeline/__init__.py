"""RAG-Tuned-LLM: from a folder of documents to a judged LoRA adapter that knows them."""

__version__ = "0.1.0"
