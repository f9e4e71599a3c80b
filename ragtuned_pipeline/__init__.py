"""RAG-Tuned-LLM: from a folder of documents to a judged LoRA adapter that knows them."""

import logging
import os

# Weights come from this package or from where a setting says; no process of it phones home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# Where it is installed, PEFT loads it, and on a CPU it warns of a kernel that is not asked for.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# How long a thread waits for the others before it lets the processor go, in turns of its loop. By
# default so long that beside another busy process a training takes ten times as long, for 10 % when
# it is alone (docs/log.md, 2026-11-27). Read when torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

__version__ = "0.1.0"
