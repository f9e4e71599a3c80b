"""RAG-Tuned-LLM: from a folder of documents to a judged LoRA adapter that knows them."""

import logging
import os

# Weights come from this package or from where a setting says; no process of it phones home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Where it is installed, PEFT loads it, and on a CPU it warns of a kernel that is not asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

__version__ = "0.1.0"
