"""One typed settings object. Sources, later ones win: profile, settings.toml in the home,
environment variables RAGTUNED_<SECTION>__<NAME>, explicit overrides.

A default's source is named beside it; those without one are this project's choice, and what was
measured for them is in docs/log.md. None is claimed to be the paper's, which published no values.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

CORPUS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
EMBEDDED_MODEL = "embedded"

Profile = Literal["embedded", "gpu", "api"]


class SettingsError(ValueError):
    """A setting is wrong; the message names it and what to change."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


def _split(value: Any) -> Any:
    """An environment variable or --set gives a list as one string: tuned,base."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _none(value: Any) -> Any:
    """An environment variable or --set writes None as none."""
    return None if value == "none" else value


class TeacherSettings(_Section):
    """The LLM that extracts, reports and synthesises; with engine "none", the offline ones do."""

    engine: Literal["none", "openai", "vllm", "transformers"] = "none"
    # Of the server, with engine openai: OpenAI, a vLLM fleet, Ollama, llama.cpp.
    address: str = "https://api.openai.com/v1"
    model: str = ""  # the server's name for it; with vllm and transformers "" is tuning.base_model
    api_key_variable: str = "OPENAI_API_KEY"  # the environment variable that holds the key
    structured_output: Literal["json_schema", "json_object", "prompt"] = "json_schema"
    temperature: float = Field(0.0, ge=0)
    seed: int = 42
    concurrency: int = Field(16, ge=1)
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0)
    timeout_seconds: float = Field(300, gt=0)  # of one request
    max_attempts: int = Field(6, ge=1)  # of one call
    price_prompt: float = Field(0.0, ge=0)  # per million tokens, in your currency
    price_completion: float = Field(0.0, ge=0)
    assumed_tokens_per_second: float = Field(40, gt=0)  # of one reply; for the plan's times
    embedding_model: str = ""  # at the same address; finds near-equal names. "" is none

    @field_validator("requests_per_minute", "tokens_per_minute", mode="before")
    @classmethod
    def _unlimited(cls, value: Any) -> Any:
        return _none(value)


class BudgetSettings(_Section):
    """Hard limits on what the teacher may cost in one run; None is no limit."""

    max_calls: int | None = Field(None, ge=0)
    max_tokens: int | None = Field(None, ge=0)
    max_money: float | None = Field(None, ge=0)  # in the currency of the prices

    @field_validator("*", mode="before")
    @classmethod
    def _unlimited(cls, value: Any) -> Any:
        return _none(value)


class VllmSettings(_Section):
    """The vLLM servers that this package starts: for the teacher, for evaluation, to serve."""

    arguments: tuple[str, ...] = ()  # further ones of `vllm serve`
    start_seconds: float = Field(900, gt=0)  # longest wait for a server to answer
    loras_at_once: int = Field(8, ge=1)  # adapters in one batch; each takes its memory

    @field_validator("arguments", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)


class CorpusSettings(_Section):
    chunk_tokens: int = Field(500, ge=50)  # GraphRAG 0.4.1, as the paper's code sets it
    overlap_tokens: int = Field(100, ge=0)  # likewise
    max_file_megabytes: float = Field(20, gt=0)


class GraphSettings(_Section):
    max_cluster_size: int = Field(10, ge=2)  # GraphRAG
    resolution: float = Field(1.0, gt=0)  # GraphRAG
    randomness: float = Field(0.001, gt=0)  # GraphRAG
    seed: int = 0xDEADBEEF  # GraphRAG
    description_sentences: int = Field(12, ge=1)
    report_findings: int = Field(8, ge=1)
    # What follows is read only where a teacher extracts (teacher.engine).
    entity_types: tuple[str, ...] = (  # the paper's code
        "organization",
        "person",
        "geo",
        "event",
        "specific object",
        "abstract object",
    )
    gleanings: int = Field(1, ge=0)  # the paper's code
    claims: bool = False
    max_description_tokens: int = Field(700, ge=50)  # longer ones are summarised
    max_report_context_tokens: int = Field(8000, ge=500)  # the paper's code

    @field_validator("entity_types", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)


class SynthesisSettings(_Section):
    seed: int = 17
    train_wordings: int = Field(8, ge=1)
    held_out_wordings: int = Field(2, ge=0)
    held_out_fact_share: float = Field(0.08, ge=0, lt=1)
    unanswerable_share: float = Field(0.08, ge=0, lt=1)  # 5-10 %: 2405.05904, 2502.14502
    max_answer_characters: int = Field(1000, ge=100)
    near_duplicate_ratio: float = Field(95.0, ge=50, le=100)
    # What follows is read only where a teacher synthesises (teacher.engine).
    rows_per_document: int = Field(200, ge=1)  # training rows, at most
    max_rows: int = Field(100_000, ge=1)  # training rows of the corpus, at most
    known_share: float = Field(0.05, ge=0, le=1)  # kept of the facts that the base knows already
    replay_share: float = Field(0.0, ge=0, lt=1)  # of the training rows; about 0.1: 2403.01244


class TuningSettings(_Section):
    base_model: str = EMBEDDED_MODEL  # "embedded", a Hugging Face id, or a local folder
    rank: int = Field(64, ge=1)
    alpha: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    batch_size: int = Field(8, ge=1)
    epochs: int = Field(8, ge=1)
    passage_epochs: int = Field(1, ge=1)  # the first epochs, in which passages are seen too
    max_tokens: int = Field(512, ge=32)  # of one training row
    # The rows are chosen to fit this time at the assumed speed, so that the choice is the same
    # on every machine; the real time is reported beside it.
    time_budget_minutes: float = Field(15, gt=0)
    assumed_tokens_per_second: float = Field(5000, gt=0)
    # Wordings of a fact where the budget does not hold all facts in all their wordings.
    min_wordings: int = Field(8, ge=1)
    packing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False  # false: only where the memory asks for it
    # nf4: the frozen weights in 4 bits (QLoRA, 2305.14314), for small cards; needs bitsandbytes.
    quantization: Literal["none", "nf4"] = "none"
    devices: int = Field(0, ge=0)  # processes, one a GPU; 0: all that share a step
    parallel: Literal["ddp", "fsdp"] = "ddp"  # how several devices share a training
    # Stop after so many held-out losses (of 5 in a training) without a fall; 0 is never.
    early_stopping: int = Field(0, ge=0)
    trackers: tuple[Literal["tensorboard", "mlflow", "trackio"], ...] = ()
    require_cuda: bool = False
    checkpoint_steps: int = Field(200, ge=1)
    seed: int = 42

    @field_validator("trackers", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)


class EvaluationSettings(_Section):
    seed: int = 29
    engine: Literal["transformers", "vllm"] = "transformers"  # what runs the answering models
    systems: tuple[str, ...] = ()  # which systems answer; () is all

    @field_validator("systems", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)

    questions_per_set: int = Field(200, ge=1)
    local_queries: int = Field(125, ge=0)  # the paper
    global_queries: int = Field(125, ge=0)  # the paper: 5 personas x 5 tasks x 5 questions
    max_answer_tokens: int = Field(160, ge=8)
    control_facts: int = Field(40, ge=2)  # at most, of the trained facts, in the shuffled control
    batch_size: int = Field(64, ge=1)
    vanilla_rag_chunk_characters: int = Field(1000, ge=20)  # the paper's code
    vanilla_rag_overlap_characters: int = Field(100, ge=0)  # the paper's code
    vanilla_rag_top_k: int = Field(10, ge=1)  # the paper's code
    rerank_to: int = Field(5, ge=1)  # the paper's code
    # At teacher.address. "" is BM25, and no reranking.
    embedding_model: str = ""
    reranking_model: str = ""
    graphrag_community_level: int = Field(2, ge=0)  # GraphRAG
    graphrag_context_tokens: int = Field(12_000, ge=500)  # GraphRAG
    graphrag_entities: int = Field(10, ge=1)  # GraphRAG
    truncate_long_context: bool = False
    price_prompt: float = Field(0.0, ge=0)  # per million tokens of the answering model
    price_completion: float = Field(0.0, ge=0)

    @field_validator("vanilla_rag_overlap_characters")
    @classmethod
    def _less_than_half(cls, value: int, info: ValidationInfo) -> int:
        chunk = info.data.get("vanilla_rag_chunk_characters", 0)
        if 2 * value >= chunk:
            raise ValueError(f"must be less than half of the {chunk} characters of a chunk")
        return value


class JudgeSettings(_Section):
    """Who compares answers: the teacher's model or another one, or rules that read no meaning."""

    engine: Literal["none", "rules", "teacher"] = "rules"
    # Of another judge than the teacher, at an OpenAI-compatible server; "" is the teacher's.
    model: str = ""
    address: str = ""
    api_key_variable: str = ""
    price_prompt: float | None = Field(None, ge=0)  # of it, a million tokens; None is the teacher's
    price_completion: float | None = Field(None, ge=0)
    pairs: Literal["all", "tuned"] = "all"  # each two systems, or the tuned one with each other
    queries_per_scope: int = Field(125, ge=1)  # the paper

    @field_validator("price_prompt", "price_completion", mode="before")
    @classmethod
    def _the_teachers(cls, value: Any) -> Any:
        return _none(value)


class AblationSettings(_Section):
    """Adapters tuned on parts of the rows, for equally many tokens (`ragtuned evaluate --full`)."""

    variants: tuple[str, ...] = ("local", "global", "both")  # the paper's Fig. 3
    time_budget_minutes: float = Field(1.5, gt=0)  # of each, as tuning.time_budget_minutes

    @field_validator("variants", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)


class ProbeSettings(_Section):
    """What tuning makes the model forget."""

    harness_tasks: tuple[str, ...] = ()  # of lm-evaluation-harness, beside the built-in probe
    harness_limit: int = Field(200, ge=1)  # items of a task

    @field_validator("harness_tasks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return _split(value)


class ChecksSettings(_Section):
    """The gate of promotion, and when a stage counts as failed."""

    max_failed_share: float = Field(0.2, ge=0, le=1)  # of a stage's items
    min_gain_over_base: float = Field(0.05, ge=0)  # in contains-gold on held-out wordings
    # How far a share may fall below that of the promoted adapter, on the questions both were asked.
    max_drop: float = Field(0.05, ge=0, le=1)
    max_probe_rise: float = Field(1.0, ge=0)  # nats a token on general text, above the promoted one


class RetuningSettings(_Section):
    """How a corpus that has an adapter is tuned again."""

    start: Literal["scratch", "warm"] = "scratch"  # warm: from the promoted adapter
    replay_share: float = Field(0.8, ge=0, lt=1)  # of a warm start's rows: earlier ones, seen again


class PromotionSettings(_Section):
    keep_adapters: int = Field(5, ge=1)  # earlier promoted ones that a rollback can go back to


class AutomationSettings(_Section):
    """What starts by itself while the Dagster daemon runs."""

    watch: bool = True  # a run whenever a corpus's folder or settings change
    quiet_seconds: float = Field(10, ge=0)  # a folder that changed later may still be copied
    nightly: str = "0 3 * * *"  # cron, local time: corpora that changed; "" is off


class ServingSettings(_Section):
    """`ragtuned serve`: the promoted adapters behind an OpenAI-compatible address."""

    engine: Literal["transformers", "vllm"] = "transformers"
    host: str = "127.0.0.1"
    port: int = Field(8008, ge=0, le=65535)  # 0 is any free one
    api_key_variable: str = "RAGTUNED_API_KEY"  # the environment variable that holds the key
    max_tokens: int = Field(512, ge=1)  # of an answer, where a request names no number
    max_requests: int = Field(256, ge=1)  # at once; more are told to come back (429)
    drain_seconds: float = Field(300, ge=0)  # for the answers of an adapter that is replaced
    share_gpu: bool = False  # true: stay up while a training or an evaluation uses the GPU
    with_dagster: bool = False  # true: the Dagster daemon keeps a server running


class Settings(_Section):
    profile: Profile = "embedded"
    teacher: TeacherSettings = TeacherSettings()
    budget: BudgetSettings = BudgetSettings()
    vllm: VllmSettings = VllmSettings()
    corpus: CorpusSettings = CorpusSettings()
    graph: GraphSettings = GraphSettings()
    synthesis: SynthesisSettings = SynthesisSettings()
    tuning: TuningSettings = TuningSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    judge: JudgeSettings = JudgeSettings()
    ablation: AblationSettings = AblationSettings()
    probe: ProbeSettings = ProbeSettings()
    checks: ChecksSettings = ChecksSettings()
    retuning: RetuningSettings = RetuningSettings()
    promotion: PromotionSettings = PromotionSettings()
    automation: AutomationSettings = AutomationSettings()
    serving: ServingSettings = ServingSettings()


_PROFILES: dict[str, dict[str, Any]] = {
    "embedded": {},
    "api": {"teacher": {"engine": "openai"}, "judge": {"engine": "teacher", "pairs": "tuned"}},
    "gpu": {
        "teacher": {"engine": "vllm", "concurrency": 64},
        "synthesis": {"replay_share": 0.1, "max_answer_characters": 4000},
        "tuning": {
            "base_model": "Qwen/Qwen2.5-7B-Instruct",
            "rank": 32,
            "alpha": 32,
            "learning_rate": 2e-4,
            "batch_size": 16,
            "epochs": 3,
            "passage_epochs": 3,
            "max_tokens": 2048,
            "time_budget_minutes": 240,
            "assumed_tokens_per_second": 8000,
            "dtype": "bfloat16",
            "packing": True,
            "require_cuda": True,
            "early_stopping": 2,
        },
        "evaluation": {"engine": "vllm", "max_answer_tokens": 512, "batch_size": 32},
        "judge": {"engine": "teacher", "pairs": "tuned"},
        "ablation": {"time_budget_minutes": 60},
        "serving": {"engine": "vllm"},
    },
}


def home_folder(home: str | Path | None = None) -> Path:
    """Return the home: `home`, else $RAGTUNED_HOME, else ~/.ragtuned; absolute, not created."""
    chosen = home or os.environ.get("RAGTUNED_HOME") or "~/.ragtuned"
    return Path(chosen).expanduser().absolute()


def check_corpus_name(name: str) -> str:
    """Return `name`, or raise SettingsError if it cannot name a corpus (a file, a partition)."""
    if not CORPUS_NAME.fullmatch(name):
        raise SettingsError(
            f"corpus name {name!r}: use 1 to 64 letters, digits, '_', '.' or '-', "
            "the first a letter or digit (--name)"
        )
    return name


def load_settings(
    home: Path,
    profile: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Return the settings for `home`.

    Args:
        home: may hold settings.toml, with `profile` and one table a section.
        profile: wins over those of the sources.
        overrides: nested as the settings are, e.g. {"profile": "gpu", "tuning": {"epochs": 2}}.
        environment: os.environ unless given.

    Raises:
        SettingsError: a source holds an unknown name or a value out of range.
    """
    environment = os.environ if environment is None else environment
    file = home / "settings.toml"
    written = _read_toml(file)
    from_environment = _from_environment(environment)
    given = dict(overrides or {})
    named = [source.pop("profile", None) for source in (given, from_environment, written)]
    name = next((n for n in (profile, *named) if n), "embedded")
    if name not in _PROFILES:
        raise SettingsError(f"profile {name!r}: choose one of {', '.join(_PROFILES)}")
    merged: dict[str, Any] = {"profile": name}
    for source in (_PROFILES[name], written, from_environment, given):
        _merge(merged, source)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SettingsError(
            f"setting {where}: {first['msg']} (got {first.get('input')!r}); "
            f"see {file}, RAGTUNED_ variables and --set"
        ) from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: not valid TOML: {error}") from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """RAGTUNED_TUNING__EPOCHS=2 -> {"tuning": {"epochs": "2"}}; RAGTUNED_PROFILE -> profile."""
    found: dict[str, Any] = {}
    for key, value in sorted(environment.items()):
        if key == "RAGTUNED_PROFILE":
            found["profile"] = value
        elif key.startswith("RAGTUNED_") and "__" in key:
            section, name = key.removeprefix("RAGTUNED_").lower().split("__", 1)
            found.setdefault(section, {})[name] = value
    return found


def _merge(into: dict[str, Any], source: Mapping[str, Any]) -> None:
    for key, value in source.items():
        if isinstance(value, Mapping) and isinstance(into.setdefault(key, {}), dict):
            _merge(into[key], value)
        else:
            into[key] = value
