"""The trainer process as Dagster starts it: the same job, reporting through Pipes."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from dagster_pipes import open_dagster_pipes

from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tuning.parent import die_with_parent
from ragtuned_pipeline.tuning.sft import TrainingInterrupted
from ragtuned_pipeline.tuning.trainer import SHORT_WAITS, TrainJob, run_job


def main() -> int:
    """Return 0 also where training was refused: the reason then comes as a custom message."""
    from safetensors import SafetensorError

    die_with_parent()
    # Ctrl-C reaches the whole process group: save a checkpoint then, too.
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault(*SHORT_WAITS)
    with open_dagster_pipes() as pipes:

        def progress(line: dict[str, Any]) -> None:
            pipes.log.info(json.dumps({"training": line}))

        job = TrainJob.model_validate(pipes.get_extra("job"))
        try:
            run_job(job, progress)
        except TrainingInterrupted:
            return 128 + signal.SIGTERM
        except (SettingsError, RuntimeError) as error:
            pipes.report_custom_message({"refused": str(error)})
        except (OSError, SafetensorError) as error:  # a full disk, above all
            reason = f"the training in {job.output} cannot go on: {error}"
            pipes.report_custom_message({"refused": reason})
    return 0


if __name__ == "__main__":
    sys.exit(main())
