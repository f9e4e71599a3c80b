"""Trainings in pods of their own: on Kubernetes a run needs no GPU, its trainer's pod has one.

The run stays one process, which holds its corpus's lock as long as it goes on; only the trainer,
which is a process of its own everywhere, becomes a pod.
"""

import json
import os
from typing import Any

import dagster as dg

from ragtuned_pipeline.orchestration.trainer_pipes import TrainerPipes, observed
from ragtuned_pipeline.settings import SettingsError

VARIABLE = "RAGTUNED_TRAINER_POD"
_POLL_SECONDS = 5.0


class TrainerPods(dg.PipesSubprocessClient):
    """Runs each command in a pod like that of the run: image, volumes, environment, account.

    Args:
        own: what the trainer's pod has beyond that, as the tag `dagster-k8s/config` has it.
    """

    def __init__(self, own: dict[str, Any]) -> None:
        super().__init__()
        self._own = own

    def run(self, *, context: Any, **asked: Any) -> Any:
        """Run a command as PipesSubprocessClient does; its folders must be on a shared volume.

        Args:
            asked: extras, command and env, as PipesSubprocessClient's.

        Raises:
            SettingsError: runs are not started by Kubernetes.
        """
        from dagster_k8s import PipesK8sClient
        from dagster_k8s.pipes import PipesK8sPodLogsMessageReader

        pod = trainer_pod(context.instance, context.run, self._own)
        client = PipesK8sClient(
            kubeconfig_file=pod["kubeconfig"],
            message_reader=observed(PipesK8sPodLogsMessageReader(), context),
            poll_interval=_POLL_SECONDS,
        )
        return client.run(
            context=context,
            namespace=pod["namespace"],
            base_pod_meta=pod["metadata"],
            base_pod_spec=pod["spec"],
            **asked,
        )


def trainer_pod(instance: dg.DagsterInstance, run: dg.DagsterRun, own: dict[str, Any]) -> Any:
    """Return what a trainer's pod of a run is made of, as Kubernetes has it in JSON.

    Returns: "namespace", "kubeconfig" (None inside the cluster), "metadata" and "spec".

    Raises:
        SettingsError: runs are not started by Kubernetes.
    """
    from dagster_k8s import K8sRunLauncher
    from dagster_k8s.container_context import K8sContainerContext
    from dagster_k8s.job import UserDefinedDagsterK8sConfig, construct_dagster_k8s_job
    from kubernetes.client import ApiClient

    launcher = instance.run_launcher
    if not isinstance(launcher, K8sRunLauncher):
        raise SettingsError(
            f"environment variable {VARIABLE}: trainers are pods only where runs are: dagster.yaml "
            "names no K8sRunLauncher; unset the variable, or set that"
        )
    like_run = launcher.get_container_context_for_run(run)
    config = UserDefinedDagsterK8sConfig.from_dict(own)  # type: ignore[no-untyped-call]
    merged = like_run.merge(K8sContainerContext(run_k8s_config=config))
    origin = run.job_code_origin
    image = origin.repository_origin.container_image if origin else None
    job = construct_dagster_k8s_job(
        merged.get_k8s_job_config(job_image=image, run_launcher=launcher),
        args=None,
        job_name="trainer",  # the client names the pod
        user_defined_k8s_config=merged.run_k8s_config,
        component="trainer",
        labels={"dagster/run-id": run.run_id},
    )
    template = ApiClient().sanitize_for_serialization(job.spec.template)
    return {
        "namespace": merged.namespace,
        "kubeconfig": launcher.kubeconfig_file,
        **template,
    }


def trainers_are_pods() -> bool:
    """Whether trainings have pods of their own: the GPU that they need is not of this machine."""
    return bool(os.environ.get(VARIABLE))


def trainer_client() -> dg.PipesSubprocessClient:
    """Return what starts trainers: a pod each where RAGTUNED_TRAINER_POD is set, else a process.

    Raises:
        SettingsError: its value is no JSON object.
    """
    if not trainers_are_pods():
        return TrainerPipes()
    try:
        own = json.loads(os.environ[VARIABLE])
    except ValueError as error:
        raise SettingsError(f"environment variable {VARIABLE}: not valid JSON: {error}") from None
    if not isinstance(own, dict):
        raise SettingsError(f"environment variable {VARIABLE}: expected a JSON object")
    return TrainerPods(own)
