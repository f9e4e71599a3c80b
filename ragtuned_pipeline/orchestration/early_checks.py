"""What can be told from the settings alone, before anything is read, asked or trained."""

from __future__ import annotations

from ragtuned_pipeline.evaluation.ablation import check_variants
from ragtuned_pipeline.evaluation.systems import SYSTEMS
from ragtuned_pipeline.inference.calls import TeacherStopped
from ragtuned_pipeline.inference.vllm_server import interpreter
from ragtuned_pipeline.orchestration.teaching import judging_settings, teacher_model
from ragtuned_pipeline.settings import Settings, SettingsError
from ragtuned_pipeline.tuning.base_models import refuse_missing_gpu


def check_early(settings: Settings) -> None:
    """Raise SettingsError where a later step would refuse the settings, hours into a run."""
    refuse_missing_gpu(settings.tuning)
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
