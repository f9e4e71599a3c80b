"""What can be told from the settings alone, before anything is read, asked or trained."""

from __future__ import annotations

from ragtuned_pipeline.evaluation.ablation import check_variants
from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.vllm_server import interpreter
from ragtuned_pipeline.orchestration.teaching import judging_settings, teacher_model
from ragtuned_pipeline.orchestration.trainer_pods import trainers_are_pods
from ragtuned_pipeline.settings import EMBEDDED_MODEL, Settings, SettingsError, TuningSettings
from ragtuned_pipeline.tuning.sft import refuse_settings


def check_early(settings: Settings) -> None:
    """Raise SettingsError where a later step would refuse the settings, hours into a run."""
    if not trainers_are_pods():
        refuse_settings(settings.tuning)
        _refuse_devices(settings.tuning)
        _refuse_small_gpu(settings.tuning)
    if settings.tuning.base_model != EMBEDDED_MODEL:
        _refuse_model(settings.tuning.base_model)
    if settings.teacher.engine != "none":
        teacher_model(settings)
    if settings.judge.engine == "teacher":
        teacher_model(judging_settings(settings))
    if settings.evaluation.engine == "vllm":
        try:
            interpreter()
        except TeacherStopped as error:
            raise SettingsError(f"setting evaluation.engine: {error}") from error
    check_variants(settings.ablation)
    unknown = [name for name in settings.evaluation.systems if name not in SYSTEMS]
    if unknown:
        raise SettingsError(
            f"setting evaluation.systems: {unknown[0]!r} is not one of {', '.join(SYSTEMS)}"
        )


def _refuse_model(base_model: str) -> None:
    """Raise SettingsError where the base model has no tokenizer, or its answers would not end."""
    from ragtuned_pipeline.tuning.base_models import load_tokenizer, refuse_unending

    refuse_unending(base_model, load_tokenizer(base_model))


def _refuse_devices(tuning: TuningSettings) -> None:
    """Raise SettingsError where several devices are asked for that are not there.

    One, or all that there are, need no look: that costs the seconds that torch takes to load.
    """
    if tuning.devices < 2:
        return
    from ragtuned_pipeline.tuning.launch import process_count

    process_count(tuning)


def _refuse_small_gpu(tuning: TuningSettings) -> None:
    """Raise SettingsError where the GPUs that the settings ask for do not hold the training.

    Where no GPU is asked for, the plan of the training itself says so: it is then the embedded
    model's as a rule, and looking costs the seconds that torch takes to load.
    """
    if not tuning.require_cuda:
        return
    from ragtuned_pipeline.tuning.machine import this_machine
    from ragtuned_pipeline.tuning.training_plan import base_shape, settings_refusal

    machine = this_machine(tuning).emptied()
    refusal = settings_refusal(base_shape(tuning.base_model), tuning, machine)
    if refusal:
        raise SettingsError(refusal)
