"""The manifests and values for Kubernetes, and trainings in pods of their own."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import kubernetes_validate
import pytest
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import construct_dagster_k8s_job
from kubernetes.client import ApiClient

from ragtuned_pipeline.definitions import defs
from ragtuned_pipeline.orchestration.trainer_pipes import TrainerPipes
from ragtuned_pipeline.orchestration.trainer_pods import (
    VARIABLE,
    trainer_client,
    trainer_pod,
)
from ragtuned_pipeline.settings import SettingsError, load_settings
from ragtuned_pipeline_tests.deploy.conftest import DEPLOY
from ragtuned_pipeline_tests.deploy.pods import Cluster, cluster

FOLDER = DEPLOY / "kubernetes"
GPU = "nvidia.com/gpu"
VALUES: dict[str, Any] = yaml.safe_load((FOLDER / "values.yaml").read_text())
MANIFESTS = [
    manifest
    for name in ("home.yaml", "serving.yaml")
    for manifest in yaml.safe_load_all((FOLDER / name).read_text())
]
BY_NAME = {(each["kind"], each["metadata"]["name"]): each for each in MANIFESTS}
ENVIRONMENT = BY_NAME["ConfigMap", "ragtuned-environment"]["data"]
OWN = json.loads(ENVIRONMENT[VARIABLE])


def launcher_config(kubeconfig: Path) -> dict[str, Any]:
    """The block run_launcher of dagster.yaml, as the chart makes it of the values."""
    given = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    return {
        "module": "dagster_k8s",
        "class": "K8sRunLauncher",
        "config": {
            "load_incluster_config": False,
            "kubeconfig_file": str(kubeconfig),
            "job_namespace": "memories",
            "service_account_name": "ragtuned-dagster",
            "dagster_home": "/opt/dagster/dagster_home",
            "instance_config_map": "ragtuned-dagster-instance",
            "postgres_password_secret": VALUES["global"]["postgresqlSecretName"],
            "image_pull_policy": given["imagePullPolicy"],
            "env_config_maps": [each["name"] for each in given["envConfigMaps"]],
            "env_secrets": [each["name"] for each in given["envSecrets"]],
            "volume_mounts": given["volumeMounts"],
            "volumes": given["volumes"],
            "run_k8s_config": {"pod_spec_config": given["runK8sConfig"]["podSpecConfig"]},
        },
    }


@pytest.fixture(scope="module")
def here(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[dg.DagsterInstance, Cluster]]:
    """An instance whose runs would be jobs of a cluster whose pods are processes."""
    folder = tmp_path_factory.mktemp("here")
    with (
        cluster(folder) as (pods, kubeconfig),
        dg.DagsterInstance.local_temp(
            str(folder), overrides={"run_launcher": launcher_config(kubeconfig)}
        ) as instance,
    ):
        yield instance, pods


def valid(manifest: Any, version: str = "1.37.0") -> None:
    kubernetes_validate.validate(manifest, version, strict=True)


def limits(pod_spec: Any) -> Any:
    return (pod_spec["containers"][0].get("resources") or {}).get("limits", {})


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: each["kind"])
def test_a_manifest_is_valid(manifest: Any) -> None:
    valid(manifest)


def test_a_mistake_in_a_manifest_is_seen() -> None:
    service = json.loads(json.dumps(BY_NAME["Service", "ragtuned-server"]))
    service["spec"]["port"] = 8008
    with pytest.raises(kubernetes_validate.ValidationError):
        valid(service)


def test_only_the_trainer_s_pod_asks_for_a_gpu(
    here: tuple[dg.DagsterInstance, Cluster],
) -> None:
    instance, _ = here
    run = instance.create_run_for_job(any_job)
    launcher = instance.run_launcher
    assert isinstance(launcher, K8sRunLauncher)
    context = launcher.get_container_context_for_run(run)
    job = construct_dagster_k8s_job(
        context.get_k8s_job_config("registry.example.org/ragtuned:cpu", launcher),
        args=["dagster", "api", "execute_run"],
        job_name="run",
        user_defined_k8s_config=context.run_k8s_config,
    )
    of_run = ApiClient().sanitize_for_serialization(job)
    valid(of_run)
    runs_spec = of_run["spec"]["template"]["spec"]
    assert limits(runs_spec) == {}
    trainer = trainer_pod(instance, run, OWN)
    assert trainer["namespace"] == "memories"
    spec = trainer["spec"]
    container = spec["containers"][0]
    valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec})
    assert limits(spec) == {GPU: "1"}
    assert container["image"] == "registry.example.org/ragtuned:cuda"
    assert spec["tolerations"] == [{"key": GPU, "operator": "Exists"}]
    for same in ("volumes", "securityContext", "serviceAccountName"):
        assert spec[same] == runs_spec[same], same
    of_run_container = runs_spec["containers"][0]
    for same in ("volumeMounts", "envFrom", "env"):
        assert container[same] == of_run_container[same], same
    assert {"name": "home", "persistentVolumeClaim": {"claimName": "ragtuned-home"}} in spec[
        "volumes"
    ]
    assert {"configMapRef": {"name": "ragtuned-environment"}} in container["envFrom"]


@dg.job
def any_job() -> None:
    """A run to be started."""


TRAINER = """
from dagster_pipes import open_dagster_pipes
with open_dagster_pipes() as pipes:
    pipes.log.info('{"training": {"event": "step", "step": 1, "loss": 0.5}}')
    pipes.report_custom_message({"doubled": 2 * pipes.get_extra("job")["number"]})
    raise SystemExit(pipes.get_extra("job")["exit"])
"""


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_trainer_is_a_pod_that_reports_and_goes(
    here: tuple[dg.DagsterInstance, Cluster], exit_code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps(OWN))
    monkeypatch.setattr("ragtuned_pipeline.orchestration.trainer_pods._POLL_SECONDS", 0.1)
    monkeypatch.setattr("ragtuned_pipeline.orchestration.trainer_pipes._OBSERVED_EVERY", 0.0)
    instance, pods = here
    messages: list[Any] = []

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["notes"]))
    def adapter(
        context: dg.AssetExecutionContext, pipes: dg.PipesSubprocessClient
    ) -> dg.MaterializeResult[None]:
        made = pipes.run(
            command=[sys.executable, "-c", TRAINER],
            context=context,
            extras={"job": {"number": 21, "exit": exit_code}},
            env={"MALLOC_TOP_PAD_": "1"},
        )
        messages.extend(made.get_custom_messages())
        return dg.MaterializeResult()

    result = dg.materialize(
        [adapter],
        instance=instance,
        partition_key="notes",
        resources={"pipes": trainer_client()},
        raise_on_error=False,
    )
    pod = list(pods.asked.values())[-1]
    assert pods.deleted == list(pods.asked)
    assert pod["metadata"]["labels"]["app.kubernetes.io/component"] == "trainer"
    assert limits(pod["spec"]) == {GPU: "1"}
    assert {"name": "MALLOC_TOP_PAD_", "value": "1"} in pod["spec"]["containers"][0]["env"]
    assert result.success == (exit_code == 0)
    if result.success:
        assert messages == [{"doubled": 42}]
        [seen, *_] = instance.fetch_observations(dg.AssetKey("adapter"), limit=1).records
        assert seen.asset_observation
        assert seen.asset_observation.metadata["loss"].value == 0.5
    else:
        [failure] = result.get_step_failure_events()
        assert "exit" in str(failure.step_failure_data.error).casefold()


def test_without_the_variable_a_trainer_is_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert isinstance(trainer_client(), TrainerPipes)
    assert isinstance(defs.resources["pipes"], TrainerPipes)
    for wrong, sentence in (("{", "not valid JSON"), ("[]", "expected a JSON object")):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(SettingsError, match=f"{VARIABLE}: {sentence}"):
            trainer_client()


def test_trainers_are_no_pods_where_runs_are_none() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(any_job)
        with pytest.raises(SettingsError, match=f"{VARIABLE}: .*names no K8sRunLauncher"):
            trainer_pod(instance, run, OWN)


# --- the values and manifests among themselves ------------------------------------------------


def named(tree: Any, key: str) -> set[str]:
    """All values of `key` in a tree, at any depth."""
    if isinstance(tree, dict):
        found = {tree[key]} if isinstance(tree.get(key), str) else set()
        return found.union(*(named(each, key) for each in tree.values()))
    return set().union(*(named(each, key) for each in tree)) if isinstance(tree, list) else set()


def test_what_pods_name_is_there_or_said_to_be_made_by_hand() -> None:
    text = "".join((FOLDER / name).read_text() for name in ("home.yaml", "serving.yaml"))
    page = (DEPLOY.parent / "docs" / "deployment.md").read_text()
    by_hand = set(re.findall(r"create secret generic (\S+)", text + page))
    tree = [VALUES, MANIFESTS]
    assert named(tree, "claimName") <= {
        name for kind, name in BY_NAME if kind == "PersistentVolumeClaim"
    }
    maps = {name for kind, name in BY_NAME if kind == "ConfigMap"}
    launcher = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
    template = BY_NAME["Deployment", "ragtuned-server"]["spec"]["template"]
    server = template["spec"]
    for spec in (launcher, VALUES["dagster-user-deployments"]["deployments"][0], server):
        for volume in spec["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in maps
    asked = {each["name"] for each in launcher["envConfigMaps"]}
    assert asked <= maps
    secrets = {each["name"] for each in launcher["envSecrets"]}
    secrets |= {VALUES["global"]["postgresqlSecretName"], "ragtuned-server"}
    assert secrets <= by_hand
    [container] = server["containers"]
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in server["volumes"]}
    assert container["envFrom"][1] == {"secretRef": {"name": "ragtuned-server"}}
    [port] = container["ports"]
    told = {each["name"]: each["value"] for each in container["env"]}
    assert told["RAGTUNED_SERVING__PORT"] == str(port["containerPort"])
    service = BY_NAME["Service", "ragtuned-server"]["spec"]
    assert (
        service["selector"].items()
        <= BY_NAME["Deployment", "ragtuned-server"]["spec"]["template"]["metadata"][
            "labels"
        ].items()
    )
    assert service["ports"][0]["targetPort"] == port["name"]


def test_the_settings_are_settings_and_a_run_needs_no_gpu(tmp_path: Path) -> None:
    written = BY_NAME["ConfigMap", "ragtuned-settings"]["data"]["settings.toml"]
    (tmp_path / "settings.toml").write_text(written)
    settings = load_settings(tmp_path, environment=ENVIRONMENT)
    assert settings.teacher.engine == "openai"
    assert settings.evaluation.engine == "transformers"
    assert settings.serving.engine == "vllm"
    assert settings.serving.share_gpu
    assert settings.tuning.require_cuda, "the trainer, which has one, refuses to do without"


def test_the_instance_is_that_of_one_machine_but_for_its_storage(tmp_path: Path) -> None:
    """What the chart writes into dagster.yaml, put together and read by Dagster."""
    extra, daemon = VALUES["additionalInstanceConfig"], VALUES["dagsterDaemon"]
    monitoring = daemon["runMonitoring"]
    retention = VALUES["retention"]
    made = {
        "run_launcher": launcher_config(tmp_path / "kubeconfig"),
        "compute_logs": VALUES["computeLogManager"]["config"]["customComputeLogManager"],
        "run_monitoring": {
            "enabled": monitoring["enabled"],
            "start_timeout_seconds": monitoring["startTimeoutSeconds"],
            "free_slots_after_run_end_seconds": monitoring["freeSlotsAfterRunEndSeconds"],
        },
        "telemetry": VALUES["telemetry"],
        "retention": {
            "schedule": {"purge_after_days": retention["schedule"]["purgeAfterDays"]},
            "sensor": {"purge_after_days": retention["sensor"]["purgeAfterDays"]},
        },
        **extra,
    }
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(made))
    ref = InstanceRef.from_dir(str(tmp_path))
    assert ref.run_launcher_data.class_name == "K8sRunLauncher"
    usual = yaml.safe_load((DEPLOY.parent / "dagster.yaml").read_text())
    usual["run_monitoring"]["start_timeout_seconds"] = 1800
    del usual["storage"], made["run_launcher"]
    assert made == usual
    assert VALUES["dagsterDaemon"]["runRetries"] == {"enabled": False}, "they are in additional…"
