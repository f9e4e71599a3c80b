"""Runs that were killed, on a real instance with the project's own dagster.yaml."""

import os
import signal
import subprocess
import sys
import textwrap

import dagster as dg

from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.runs import alone, end_dead_runs

# Claims the slot as the training step does, and is killed with it.
KILLED = """
    import os, signal, sys
    import dagster as dg
    from ragtuned_pipeline.orchestration.home import Home
    from ragtuned_pipeline.orchestration import runs

    home = Home.find(sys.argv[1])
    runs.prepare_environment(home)

    @dg.asset(partitions_def=runs.corpora, pool="accelerator")
    def doomed() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    job = dg.Definitions([doomed]).resolve_implicit_global_asset_job_def()
    with runs.alone(home, "notes"), dg.DagsterInstance.get() as instance:
        instance.add_dynamic_partitions("corpora", ["notes"])
        job.execute_in_process(instance=instance, partition_key="notes", tags=runs.COMMAND_LINE)
"""


def test_a_killed_run_is_marked_failed_and_gives_its_pool_slot_back(home: Home) -> None:
    code = textwrap.dedent(KILLED)
    killed = subprocess.run([sys.executable, "-c", code, str(home.folder)], env=dict(os.environ))
    assert killed.returncode == -signal.SIGKILL
    with dg.DagsterInstance.get() as instance:
        [run] = instance.get_runs()
        slots = instance.event_log_storage.get_concurrency_info
        assert run.status == dg.DagsterRunStatus.STARTED
        assert slots("accelerator").active_run_ids == {run.run_id}
        with alone(home, "notes"):  # as if its process lived
            end_dead_runs(home, instance, "another")
        assert slots("accelerator").active_run_ids == {run.run_id}
        end_dead_runs(home, instance, "another")
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.FAILURE
        assert slots("accelerator").active_run_ids == set()
