"""`ragtuned`: thin verbs over the same functions and the same Dagster job that the UI runs."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import sys
import time
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ragtuned_pipeline.orchestration.home import Home

# The disk is full or broken, or may not be written: nothing that another command would change.
_PLACE_FAILS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EROFS, errno.EACCES, errno.EPERM),
}
_MEND_PLACE = (
    "`ragtuned doctor` says what is wrong. What was finished is kept, and the same command goes on "
    "from there"
)

app = typer.Typer(
    name="ragtuned",
    help="Turn a folder of documents into a LoRA adapter that knows them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

HomeOption = Annotated[
    str | None,
    typer.Option("--home", help="Where everything is kept [$RAGTUNED_HOME, else ~/.ragtuned]."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
CorpusArgument = Annotated[str, typer.Argument(metavar="N", help="The corpus's name.")]
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of documents.")]
ProfileOption = Annotated[str | None, typer.Option("--profile", help="embedded, gpu or api.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.NAME=VALUE", help="A setting.")
]
SystemOption = Annotated[
    str,
    typer.Option(
        help="Which system answers: tuned, base, tuned_rag, vanilla_rag, graphrag_local, "
        "graphrag_global or long_context."
    ),
]


class ExportFormat(StrEnum):
    """What a corpus can be exported as."""

    adapter = "adapter"
    merged = "merged"
    gguf = "gguf"
    messages = "messages"
    alpaca = "alpaca"
    sharegpt = "sharegpt"
    graphrag = "graphrag"
    openlineage = "openlineage"


class Dtype(StrEnum):
    """What merged weights can be written in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@app.command()
def run(
    folder: FolderArgument,
    name: Annotated[str | None, typer.Option(help="Name of the corpus [the folder's]")] = None,
    profile: ProfileOption = None,
    gold: Annotated[
        Path | None, typer.Option(help="Your questions with reference answers: json, jsonl or csv.")
    ] = None,
    set_: SetOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read DIR, build its graph, synthesise, tune an adapter, evaluate and report."""
    from ragtuned_pipeline.orchestration.early_checks import check_early
    from ragtuned_pipeline.settings import load_settings

    place = _home(home)
    corpus = name or folder.resolve().name
    own = _overrides(set_ or [], profile)
    check_early(load_settings(place.folder, overrides=own))  # before anything is written
    place.register(corpus, folder, gold, own)
    _run_and_show(place, corpus, None, as_json)


@app.command()
def plan(
    folder: FolderArgument,
    profile: ProfileOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what DIR would cost: the teacher's calls, tokens, money and time; and what tuning would
    be: tokens, steps, memory, minutes, bits. Nothing is asked or written."""
    from dataclasses import asdict

    from ragtuned_pipeline.corpus.readers import CorpusError
    from ragtuned_pipeline.orchestration.display import show_plan
    from ragtuned_pipeline.orchestration.planning import plan_folder
    from ragtuned_pipeline.settings import load_settings

    place = _home(home)
    settings = load_settings(place.folder, overrides=_overrides(set_ or [], profile))
    try:
        planned = plan_folder(folder, settings, place.completions)
    except CorpusError as error:
        _fail(str(error))
    if as_json:
        print(json.dumps(asdict(planned), ensure_ascii=False))
    else:
        show_plan(planned, settings)
    if planned.refusal:
        _fail(planned.refusal)


@app.command()
def prune(
    days: Annotated[float, typer.Option(min=0, help="Replies unused for so many days go.")] = 90,
    home: HomeOption = None,
) -> None:
    """Delete stored replies of the teacher that no run has used for a while."""
    from ragtuned_pipeline.inference.completions import CompletionStore

    place = _home(home)
    if not place.completions.is_file():
        print(f"No stored replies in {place.folder}.")
        return
    with CompletionStore(place.completions) as store:
        gone, left = store.prune(days), store.count()
    print(f"{gone:,} stored replies deleted, {left:,} kept in {place.completions}")


@app.command()
def evaluate(
    corpus: CorpusArgument,
    full: Annotated[
        bool, typer.Option("--full", help="Tune and judge the adapters of the ablation too.")
    ] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the corpus's questions, score and judge every system and write the report."""
    from ragtuned_pipeline.orchestration.early_checks import check_early

    place = _known(home, corpus)
    check_early(place.settings(corpus))
    groups = ("ablation", "evaluation") if full else ("evaluation",)
    _run_and_show(place, corpus, groups, as_json)


@app.command()
def ask(
    corpus: CorpusArgument,
    question: Annotated[str, typer.Argument(help="The question.")],
    system: SystemOption = "tuned",
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask one question."""
    place = _known(home, corpus)
    with _answerer(place, corpus, system) as answer:
        given = answer(question)
    if as_json:
        print(json.dumps(given, ensure_ascii=False))
    else:
        print(given["answer"])


@app.command()
def chat(corpus: CorpusArgument, system: SystemOption = "tuned", home: HomeOption = None) -> None:
    """Ask questions one after the other; an empty line or Ctrl-D ends it."""
    place = _known(home, corpus)
    with _answerer(place, corpus, system) as answer:
        while True:
            try:
                question = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if not question:
                return
            print(answer(question)["answer"])


@app.command()
def status(
    corpus: Annotated[str | None, typer.Argument(metavar="[N]", help="One corpus only.")] = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what each corpus holds: tables, adapter, scores, failures; and where it is served."""
    from ragtuned_pipeline.orchestration.display import server_line, show_status
    from ragtuned_pipeline.orchestration.promotion_history import PromotionError
    from ragtuned_pipeline.orchestration.serving_home import running_server
    from ragtuned_pipeline.orchestration.status import corpus_status, home_status

    place = _known(home, corpus) if corpus else _home(home)
    try:
        found, misnamed = ([corpus_status(place, corpus)], []) if corpus else home_status(place)
    except PromotionError as error:
        _fail(str(error))
    server = running_server(place)
    if as_json:
        told = {
            "home": str(place.folder),
            "corpora": found,
            "misnamed": misnamed,
            "server": server,
        }
        print(json.dumps(told, ensure_ascii=False))
        return
    if not found:
        print(f"No corpus in {place.folder} yet: ragtuned run DIR")
    for entry in found:
        show_status(entry)
    for line in misnamed:
        print(line)
    if found:
        print(server_line(server))


@app.command()
def why(
    corpus: CorpusArgument,
    question: Annotated[str, typer.Argument(help="The question.")],
    rows: Annotated[int, typer.Option(min=1, help="How many training rows to look at.")] = 5,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer, and show what the answer comes from: rows, facts, sentences, documents, runs."""
    from ragtuned_pipeline.orchestration.lineage import as_json as lineage_json
    from ragtuned_pipeline.orchestration.lineage import trace_answer
    from ragtuned_pipeline.orchestration.lineage_display import show_lineage
    from ragtuned_pipeline.orchestration.promotion_history import PromotionError

    place = _known(home, corpus)
    try:
        with _answerer(place, corpus, "tuned") as answer:
            lineage = trace_answer(place, corpus, question, answer(question)["answer"], rows)
    except PromotionError as error:
        _fail(str(error))
    if as_json:
        print(json.dumps(lineage_json(lineage), ensure_ascii=False))
    else:
        show_lineage(lineage)


@app.command()
def export(
    corpus: CorpusArgument,
    form: Annotated[
        ExportFormat,
        typer.Option(
            "--format",
            help="adapter, merged (folders for the Hugging Face hub), gguf (for llama.cpp); "
            "messages, alpaca, sharegpt: the training rows; graphrag: a folder of tables; "
            "openlineage: the steps of its runs.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(help="The file or folder to write [of lines stdout, else ./N-FORMAT]."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(metavar="HASH", help="A stored adapter [the promoted one].")
    ] = None,
    dtype: Annotated[
        Dtype | None, typer.Option(help="Of merged weights [the base model's].")
    ] = None,
    converter: Annotated[
        Path | None,
        typer.Option(help="llama.cpp's convert_hf_to_gguf.py [$LLAMA_CPP_CONVERTER, or on PATH]."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Write a corpus in another tool's format."""
    for given, option, forms in (
        (adapter, "--adapter", ("adapter", "merged", "gguf")),
        (dtype, "--dtype", ("merged",)),
        (converter, "--converter", ("gguf",)),
    ):
        if given is not None and form not in forms:
            _usage_error(f"{option}: only with --format {' or '.join(forms)}")
    place = _known(home, corpus)
    if form in _LINES:
        _write_lines(_LINES[form](place, corpus, form), form, output)
        return
    from ragtuned_pipeline.orchestration import exporting

    suffix = ".gguf" if form == "gguf" else f"-{form}"
    target = output or Path(f"{corpus}{suffix}")
    tell = partial(print, file=sys.stderr, flush=True)
    with _exporting(place, corpus):
        match form:
            case ExportFormat.adapter:
                done = exporting.export_adapter(place, corpus, target, adapter)
            case ExportFormat.merged:
                done = exporting.export_merged(place, corpus, target, adapter, dtype, tell)
            case ExportFormat.gguf:
                done = exporting.export_gguf(place, corpus, target, adapter, converter, tell)
            case _:
                done = exporting.export_graphrag(place, corpus, target)
    print(done)


@app.command()
def serve(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(metavar="[N ...]", help="Only these [all, also those that come later]."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen [serving.host].")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="0 is any free one [serving.port].")
    ] = None,
    profile: ProfileOption = None,
    set_: SetOption = None,
    home: HomeOption = None,
) -> None:
    """Let OpenAI clients ask the promoted adapters, each under its corpus's name."""
    from ragtuned_pipeline.inference.calls import TeacherStopped
    from ragtuned_pipeline.orchestration.serving_home import (
        AlreadyServed,
        base_model_of,
        serve_home,
    )
    from ragtuned_pipeline.settings import load_settings

    place = _home(home)
    named = [name for name in corpora or [] if _known(home, name)]
    own = _overrides(set_ or [], profile)
    given = {"host": host, "port": port}
    section = own.setdefault("serving", {})
    section |= {name: value for name, value in given.items() if value is not None}
    settings = load_settings(place.folder, overrides=own)
    base_model = settings.tuning.base_model
    if not profile and "base_model" not in own.get("tuning", {}):
        base_model = base_model_of(place, named, base_model)
    try:
        serve_home(place, settings, base_model, named, _say)
    except (AlreadyServed, TeacherStopped) as error:
        _fail(str(error))


@app.command()
def promote(
    corpus: CorpusArgument,
    adapter: Annotated[
        str | None, typer.Argument(metavar="[ADAPTER]", help="A stored one [the last trained].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Promote in spite of the gate.")] = False,
    home: HomeOption = None,
) -> None:
    """Let the last trained adapter, or ADAPTER, answer, if it passes the gate."""
    from ragtuned_pipeline.orchestration.promotions import promote_by_hand, show_in_dagster

    place = _known(home, corpus)
    with _alone(place, corpus):
        outcome = promote_by_hand(place, corpus, adapter, force)
        if outcome.what == "refused":
            _fail(f"{outcome.sentence}; --force promotes it all the same")
        if outcome.what == "promoted":
            show_in_dagster(place, corpus, outcome.history[-1])
            for reason in outcome.verdict.reasons:
                print(f"in spite of the gate: {reason}")
    for remark in outcome.verdict.remarks:
        print(remark)
    before = f" (before: {outcome.previous or 'none'})" if outcome.what == "promoted" else ""
    print(f"{corpus}: {outcome.sentence}{before}")


@app.command()
def rollback(
    corpus: CorpusArgument,
    adapter: Annotated[
        str | None,
        typer.Argument(metavar="[ADAPTER]", help="One that answered [the one before]."),
    ] = None,
    home: HomeOption = None,
) -> None:
    """Let the adapter that answered before, or ADAPTER, answer again."""
    from ragtuned_pipeline.orchestration.promotions import roll_back, show_in_dagster

    place = _known(home, corpus)
    with _alone(place, corpus):
        entry = roll_back(place, corpus, adapter)
        show_in_dagster(place, corpus, entry)
    print(
        f"{corpus}: adapter {entry.adapter} answers now (before: {entry.left}, set aside until it "
        "is promoted by hand or another adapter is trained)"
    )


@app.command()
def forget(
    corpus: CorpusArgument,
    document: Annotated[
        str | None,
        typer.Argument(metavar="[DOC]", help="Its path, title or id [what is gone already]."),
    ] = None,
    whole_file: Annotated[
        bool, typer.Option("--whole-file", help="Delete the other records of its file too.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before deleting.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete a document and all that was made with it, and make the corpus anew without it.

    Exit status 1 where no adapter answers afterwards.
    """
    from dataclasses import asdict

    from ragtuned_pipeline.inference.completions import StoreInUse
    from ragtuned_pipeline.orchestration.dagster_records import RecordsInUse
    from ragtuned_pipeline.orchestration.display import show_progress
    from ragtuned_pipeline.orchestration.forgetting import (
        CannotForget,
        holdings,
        plan_forgetting,
        planned_lines,
        result_lines,
    )
    from ragtuned_pipeline.orchestration.forgetting import forget as forget_document
    from ragtuned_pipeline.orchestration.locks import RunFailed

    place = _known(home, corpus)
    try:
        planned = plan_forgetting(place, corpus, document, whole_file)
        if dry_run or not yes:
            counts = holdings(place, corpus)
            if dry_run and as_json:
                print(json.dumps({**planned.model_dump(exclude={"questions"}), "holds": counts}))
                return
            lines = planned_lines(place, corpus, planned, counts)
            print(*lines, sep="\n", file=sys.stdout if dry_run else sys.stderr)
            if dry_run:
                return
            if not _agreed():
                _fail("nothing was deleted")
        with show_progress(corpus, as_json) as on_event:
            forgotten = forget_document(place, corpus, planned, on_event)
    except (CannotForget, RunFailed, StoreInUse, RecordsInUse) as error:
        _fail(str(error))
    if as_json:
        print(json.dumps(asdict(forgotten), ensure_ascii=False))
    else:
        print(*result_lines(forgotten), sep="\n")
    if not forgotten.answers:
        sys.exit(1)


@app.command()
def doctor(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find and mend what a crash of the machine left in the home; exit status 1 if some is left."""
    from dataclasses import asdict

    from ragtuned_pipeline.orchestration.doctor import examine

    place = _home(home)
    found = examine(place, mend=not dry_run)
    if as_json:
        rows = [asdict(each) for each in found]
        print(json.dumps({"home": str(place.folder), "findings": rows}, ensure_ascii=False))
    else:
        for each in found:
            print(f"{each.state}: {each.what}: {each.remedy}")
        if not found:
            print(f"nothing is wrong in {place.folder}")
    if any(each.state != "mended" for each in found):
        sys.exit(1)


def main() -> None:
    """The console entry: one sentence for an expected error, exit status 1; usage errors 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # One progress display is enough; these libraries would draw theirs across it.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from ragtuned_pipeline.orchestration.locks import RunFailed
    from ragtuned_pipeline.settings import SettingsError

    try:
        app()
    except KeyboardInterrupt:
        _fail("stopped; what was finished is kept, and the same command goes on from there")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except SettingsError as error:
        _usage_error(str(error))
    except RunFailed as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in _PLACE_FAILS:
            raise
        _fail(f"{error.filename or 'a file'}: {error.strerror}; {_MEND_PLACE}")
    except sqlite3.DatabaseError as error:
        _fail(f"a database of the home cannot be used ({error}); {_MEND_PLACE}")


def _home(home: str | None) -> Home:
    from ragtuned_pipeline.orchestration.home import Home

    return Home.find(home)


def _known(home: str | None, corpus: str) -> Home:
    from ragtuned_pipeline.orchestration.home import CorpusMissing

    place = _home(home)
    try:
        place.documents(corpus)
    except CorpusMissing as error:
        _fail(str(error))
    return place


def _overrides(assignments: list[str], profile: str | None) -> dict[str, Any]:
    """["tuning.epochs=2"] -> {"tuning": {"epochs": "2"}}."""
    from ragtuned_pipeline.settings import SettingsError

    own: dict[str, Any] = {"profile": profile} if profile else {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and section and name):
            raise SettingsError(f"--set {assignment}: write it as SECTION.NAME=VALUE")
        own.setdefault(section, {})[name] = value
    return own


def _run_and_show(place: Home, corpus: str, groups: tuple[str, ...] | None, as_json: bool) -> None:
    from ragtuned_pipeline.orchestration.assets.ablation import idle_steps
    from ragtuned_pipeline.orchestration.display import show_progress, show_results
    from ragtuned_pipeline.orchestration.locks import RunFailed
    from ragtuned_pipeline.orchestration.runs import run_assets
    from ragtuned_pipeline.orchestration.status import corpus_status

    try:
        unnamed = idle_steps(place.settings(corpus)) if groups and "ablation" in groups else ()
        with show_progress(corpus, as_json, unnamed) as on_event:
            run_assets(place, corpus, groups, on_event)
    except RunFailed as error:
        _fail(str(error))
    entry = corpus_status(place, corpus)
    if as_json:
        print(json.dumps(entry, ensure_ascii=False))
    else:
        show_results(entry)
    if groups is None and entry["promotion_refused"]:
        _fail(f"the new adapter was not promoted: {entry['promotion_refused']}")


@contextmanager
def _alone(place: Home, corpus: str) -> Iterator[None]:
    """Keep runs of the corpus out while a person decides which adapter answers, or reads it."""
    from ragtuned_pipeline.orchestration.locks import RunFailed, alone
    from ragtuned_pipeline.orchestration.promotion_history import PromotionError
    from ragtuned_pipeline.tuning.adapter_store import AdapterError

    try:
        with alone(place, corpus):
            yield
    except (RunFailed, PromotionError, AdapterError) as error:
        _fail(str(error))


@contextmanager
def _exporting(place: Home, corpus: str) -> Iterator[None]:
    """Keep runs of the corpus out while it is read, and nothing leaves what is to be forgotten."""
    from ragtuned_pipeline.orchestration.exporting import refuse_unfinished_forgetting
    from ragtuned_pipeline.tuning.export import CannotExport

    try:
        with _alone(place, corpus):
            refuse_unfinished_forgetting(place, corpus)
            yield
    except CannotExport as error:
        _fail(str(error))


def _rows_as_lines(place: Home, corpus: str, form: str) -> list[str]:
    from ragtuned_pipeline.orchestration.exporting import training_lines

    with _exporting(place, corpus):
        return training_lines(place, corpus, form)


def _events_as_lines(place: Home, corpus: str, form: str) -> list[str]:
    from ragtuned_pipeline.orchestration.openlineage import NothingRecorded, lineage_events

    try:
        events = lineage_events(place, corpus)
    except NothingRecorded as error:
        _fail(str(error))
    return [f"{json.dumps(event, ensure_ascii=False)}\n" for event in events]


_LINES: dict[str, Callable[[Home, str, str], list[str]]] = {
    "messages": _rows_as_lines,
    "alpaca": _rows_as_lines,
    "sharegpt": _rows_as_lines,
    "openlineage": _events_as_lines,
}


def _write_lines(lines: list[str], form: str, output: Path | None) -> None:
    from ragtuned_pipeline.files import write_text

    if output is None:
        print(*lines, sep="", end="")
        return
    try:
        write_text(output, "".join(lines))
    except OSError as error:
        _fail(f"--output {output}: {error.strerror}")
    print(f"{len(lines):,} {form} lines written to {output}")


@contextmanager
def _answerer(place: Home, corpus: str, system: str) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Yield a function from a question to the answer of `system` and what it cost."""
    from ragtuned_pipeline.inference.calls import TeacherStopped
    from ragtuned_pipeline.orchestration.answering import CannotAnswer, prepared_system

    try:
        with prepared_system(place, corpus, system) as answerer:

            def answer(question: str) -> dict[str, Any]:
                [given] = answerer.answer([question])
                return {
                    "corpus": corpus,
                    "system": system,
                    "question": question,
                    "answer": given.text,
                    "prompt_tokens": given.prompt_tokens,
                    "completion_tokens": given.completion_tokens,
                    "seconds": round(given.seconds, 4),
                    "context_ids": list(given.context_ids),
                    "calls": given.calls,
                }

            yield answer
    except (CannotAnswer, TeacherStopped) as error:
        _fail(str(error))


def _agreed() -> bool:
    """Ask on a terminal; elsewhere --yes has to be given."""
    if not sys.stdin.isatty():
        _usage_error("--yes: no terminal to ask on; give it to delete without being asked")
    return input("Delete? [y/N] ").strip().casefold() in {"y", "yes"}


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def _usage_error(message: str) -> NoReturn:
    print(f"ragtuned: {message}", file=sys.stderr)
    sys.exit(2)


def _fail(message: str) -> NoReturn:
    print(f"ragtuned: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
