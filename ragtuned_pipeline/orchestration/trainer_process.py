"""The trainer process as Dagster starts it: the same job, reporting through Pipes."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from dagster_pipes import open_dagster_pipes

from ragtuned_pipeline.settings import SettingsError
from ragtuned_pipeline.tuning.sft import TrainingInterrupted
from ragtuned_pipeline.tuning.trainer import CannotGoOn, TrainJob, begin, run_job


def main() -> int:
    """Return 0 also where training was refused: the reason then comes as a custom message."""
    begin()
    # Ctrl-C reaches the whole process group: save a checkpoint then, too.
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with open_dagster_pipes() as pipes:

        def progress(line: dict[str, Any]) -> None:
            pipes.log.info(json.dumps({"training": line}))

        job = TrainJob.model_validate(pipes.get_extra("job"))
        try:
            run_job(job, progress)
        except TrainingInterrupted:
            return 128 + signal.SIGTERM
        except (SettingsError, RuntimeError, CannotGoOn) as error:
            pipes.report_custom_message({"refused": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
