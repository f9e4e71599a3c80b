"""Promotion, rollback, history and retention, with adapters and scorecards made by hand."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.orchestration import promotion_history, promotions
from ragtuned_pipeline.orchestration.assets.promotion import gate_metadata, promotion
from ragtuned_pipeline.orchestration.display import show_results, show_status
from ragtuned_pipeline.orchestration.forgetting import Forgetting
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.partitions import corpora
from ragtuned_pipeline.orchestration.promotion_history import Entry, PromotionError, set_aside
from ragtuned_pipeline.orchestration.promotions import promote_by_hand, promote_trained, roll_back
from ragtuned_pipeline.orchestration.resources import HomeResource
from ragtuned_pipeline.orchestration.runs import alone, prepare_environment
from ragtuned_pipeline.orchestration.status import corpus_status
from ragtuned_pipeline.orchestration.training import Training, training_file
from ragtuned_pipeline.settings import EMBEDDED_MODEL
from ragtuned_pipeline.tables import content_hash, table
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline_tests.conftest import own_environment
from ragtuned_pipeline_tests.evaluation.judging import held_out_wordings

CORPUS, QUESTIONS = "letters", 40
SECRET = "the Hask Dam stands at Corvane"  # a sentence of the corpus


@dataclass(frozen=True)
class Corpus:
    """A home with one corpus, whose adapters are trained and judged by hand."""

    home: Home

    def store(self, weight: float) -> str:
        """Store an adapter as training does; equal weights are one adapter."""
        made = self.home.folder / "made"
        made.mkdir()
        save_file({"a": np.full(4, weight, np.float32)}, made / "adapter_model.safetensors")
        (made / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
        adapter = adapter_store.store(made, self.home.adapters, CORPUS, EMBEDDED_MODEL)
        shutil.rmtree(made)
        return adapter

    def train(self, weight: float, right: int = 36, loss: float = 4.0) -> str:
        """Train an adapter and judge it: `right` of the 40 held-out wordings."""
        adapter = self.store(weight)
        self.record("tuned", adapter)
        self.judge(adapter, right, loss)
        return adapter

    def record(self, purpose: str, adapter: str) -> None:
        file = training_file(self.home, CORPUS, purpose)
        training = Training("key", adapter, "base-1", {}, {"seconds": 1.0})
        file.write_text(json.dumps(asdict(training)))

    def judge(self, adapter: str, right: int, loss: float) -> None:
        store = TableStore(self.home.tables)
        queries, given = held_out_wordings(f"{SECRET}?", "Corvane", QUESTIONS, right)
        store.write("queries", CORPUS, queries)
        store.write("answers", CORPUS, given)
        scorecard = {
            "systems": {"tuned": {}, "base": {}},
            "skipped": {},
            "versions": {
                "adapter": adapter,
                "base model": "base-1",
                "data training_rows": f"rows of {adapter}",
                "data queries": content_hash(queries),
            },
            "general_ability": {"language_loss": {"tuned": loss}},
            "coverage": {"sentences": 10, "sentences_covered": 9},
        }
        file = self.home.report(CORPUS) / "scorecard.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scorecard))

    def promoted(self) -> str | None:
        return adapter_store.promoted(self.home.adapters, CORPUS)

    def history(self) -> list[tuple[str, str]]:
        entries = promotion_history.history(self.home, CORPUS)
        return [(entry.what, entry.adapter) for entry in entries]

    def stored(self) -> set[str]:
        return set(adapter_store.stored(self.home.adapters, CORPUS))

    def run(self) -> str:
        """What the promotion of a run comes to."""
        return promote_trained(self.home, CORPUS, "run-1").what


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    own_environment(monkeypatch)
    home = Home(tmp_path / "home")
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "one.txt").write_text(f"{SECRET}.")
    home.register(CORPUS, documents, None, {})
    return Corpus(home)


# ---- promotion ----


def test_the_history_says_what_was_decided_and_why(corpus: Corpus) -> None:
    first = corpus.train(1, right=36)
    assert corpus.run() == "promoted"
    worse = corpus.train(2, right=20)
    assert corpus.run() == "refused"
    assert corpus.run() == "refused", "every night again"
    assert corpus.promoted() == first
    promoted, refused = promotion_history.history(corpus.home, CORPUS)
    assert (promoted.what, promoted.adapter, promoted.left) == ("promoted", first, None)
    assert (refused.what, refused.adapter, refused.left) == ("refused", worse, first)
    assert refused.run == "run-1"
    assert refused.data_version == f"rows of {worse}"
    assert refused.numbers == {"held_out_wording": 0.5, "general_loss": 4.0, "coverage": 0.9}
    [reason] = refused.reasons
    assert "scores 0.500 and the promoted adapter 0.900, over the 40 that both" in reason
    assert refused.when.endswith("+00:00")


def test_what_is_kept_of_an_adapter_holds_no_text(corpus: Corpus) -> None:
    corpus.train(1)
    corpus.run()
    corpus.train(2, right=0)
    corpus.run()
    kept = corpus.home.adapters / CORPUS
    assert {file.name for file in kept.glob("*.json")} == {
        "history.json",
        "numbers.json",
        "tuned.json",
    }
    for file in kept.rglob("*"):
        if file.is_file():
            assert b"Hask Dam" not in file.read_bytes(), file
            assert b"Corvane" not in file.read_bytes(), file


def test_an_adapter_that_answers_stays_and_its_numbers_are_those_of_its_last_evaluation(
    corpus: Corpus,
) -> None:
    adapter = corpus.train(1, right=36)
    corpus.run()
    corpus.judge(adapter, right=30, loss=4.0)
    assert corpus.run() == "unchanged"
    assert len(corpus.history()) == 1
    assert promotions.kept_numbers(corpus.home, CORPUS)[adapter].share("held_out_wording") == 0.75
    corpus.judge(adapter, right=0, loss=4.0)
    outcome = promote_trained(corpus.home, CORPUS, "run-2")
    assert outcome.what == "unchanged", "it answers; there is nothing to promote"
    assert [each.against for each in outcome.verdict.refusals] == ["base"], "not with itself"


def test_a_scorecard_of_another_adapter_or_other_questions_decides_nothing(corpus: Corpus) -> None:
    with pytest.raises(PromotionError, match="no scorecard yet"):
        corpus.run()
    first = corpus.train(1)
    corpus.record("tuned", corpus.store(2))
    with pytest.raises(PromotionError, match=r"not that of adapter .*`ragtuned evaluate letters`"):
        corpus.run()
    corpus.record("tuned", first)
    store = TableStore(corpus.home.tables)
    store.write("queries", CORPUS, store.read("queries", CORPUS).slice(1))
    with pytest.raises(PromotionError, match="the questions of now"):
        corpus.run()


def test_failed_items_are_those_of_the_stages(corpus: Corpus) -> None:
    corpus.train(1)
    store = TableStore(corpus.home.tables)
    failure = {"stage": "documents", "item_id": "x", "reason": "r", "attempts": 1, "at": ""}
    usage = {"step": "extraction", "calls": 8, "failed": 2, "prompt_tokens": 1}
    store.write("documents_failures", CORPUS, table("failures", [failure] * 3))
    store.write("graph_failures", CORPUS, table("failures", [failure]))
    store.write(
        "graph_usage", CORPUS, table("teacher_usage", [usage | {"completion_tokens": 1}] * 2)
    )
    found = promotions.failed_items(store, CORPUS)
    assert found["documents"] == (3, 3)
    assert found["text_units"] == (4, 16), "where a teacher was asked, its calls are the items"
    assert found["answers_tuned"] == (0, QUESTIONS)
    assert corpus.run() == "refused"
    [entry] = promotion_history.history(corpus.home, CORPUS)
    assert "3 of 3 documents failed" in entry.reasons[0]


def test_numbers_kept_in_other_fields_are_taken_for_none(corpus: Corpus) -> None:
    """An upgrade may judge by other numbers than the version that has kept them."""
    first = self_promoted(corpus, 1)
    file = corpus.home.adapters / CORPUS / "numbers.json"
    [kept] = json.loads(file.read_text()).values()
    question = {**kept["questions"][0], "wording": 1}
    older = (
        {name: value for name, value in kept.items() if name != "covered"},
        {**kept, "loss": 1.0},
        {**kept, "questions": [question]},
        {**kept, "questions": [list(kept["questions"][0].values())]},
        {**kept, "failed": [1, 2]},
    )
    for each in older:
        file.write_text(json.dumps({first: each, "other": kept}))
        assert list(promotions.kept_numbers(corpus.home, CORPUS)) == ["other"]
    second = corpus.train(2, right=20)
    verdict = promotions.verdict_on(corpus.home, CORPUS, promotions.judged(corpus.home, CORPUS))
    alone = f"no numbers of the promoted adapter {first} are kept: compared with the base only"
    assert verdict.remarks == (alone,)
    assert gate_metadata(verdict)["remarks"] == alone
    assert corpus.run() == "promoted"
    assert set(promotions.kept_numbers(corpus.home, CORPUS)) == {second}


# ---- by hand ----


def test_a_person_may_promote_what_the_gate_refuses(corpus: Corpus) -> None:
    first = corpus.train(1)
    corpus.run()
    worse = corpus.train(2, right=0)
    assert promote_by_hand(corpus.home, CORPUS, None, force=False).what == "refused"
    assert corpus.promoted() == first
    outcome = promote_by_hand(corpus.home, CORPUS, None, force=True)
    assert outcome.what == "promoted"
    assert corpus.promoted() == worse
    assert corpus.history()[-1] == ("promoted by hand", worse)
    assert outcome.history[-1].reasons, "the reasons it was promoted in spite of"
    assert corpus.run() == "unchanged"


def test_an_earlier_adapter_is_judged_by_what_was_kept_of_it(corpus: Corpus) -> None:
    first = corpus.train(1, right=30)
    corpus.run()
    second = corpus.train(2, right=40)
    corpus.run()
    outcome = promote_by_hand(corpus.home, CORPUS, first, force=False)
    assert outcome.what == "refused", "it is worse than the second"
    unjudged = corpus.store(3)
    with pytest.raises(PromotionError, match=f"{unjudged} .*was never judged"):
        promote_by_hand(corpus.home, CORPUS, unjudged, force=False)
    with pytest.raises(adapter_store.AdapterError, match="no adapter nobody"):
        promote_by_hand(corpus.home, CORPUS, "nobody", force=True)
    assert corpus.promoted() == second
    assert promote_by_hand(corpus.home, CORPUS, first, force=True).what == "promoted"
    assert corpus.run() == "set aside", "the second was replaced by hand"


# ---- rollback ----


def test_two_rollbacks_lead_two_promotions_back(corpus: Corpus) -> None:
    with pytest.raises(PromotionError, match="nothing to roll back"):
        roll_back(corpus.home, CORPUS, None)
    made = []
    for weight in (1, 2, 3):
        made.append(corpus.train(weight))
        corpus.run()
    first, second, third = made
    assert roll_back(corpus.home, CORPUS, None).adapter == corpus.promoted() == second
    assert roll_back(corpus.home, CORPUS, None).adapter == corpus.promoted() == first
    with pytest.raises(PromotionError, match=f"no adapter before {first}"):
        roll_back(corpus.home, CORPUS, None)
    assert roll_back(corpus.home, CORPUS, third).adapter == corpus.promoted() == third
    assert roll_back(corpus.home, CORPUS, None).adapter == first
    never = corpus.store(4)
    with pytest.raises(PromotionError, match="has never answered"):
        roll_back(corpus.home, CORPUS, never)
    with pytest.raises(PromotionError, match="answers for 'letters' already"):
        roll_back(corpus.home, CORPUS, first)
    assert len(corpus.history()) == 7


def test_a_rollback_leaves_out_what_is_no_longer_stored(corpus: Corpus) -> None:
    first, second, third = (self_promoted(corpus, weight) for weight in (1, 2, 3))
    adapter_store.delete(corpus.home.adapters, CORPUS, second)
    assert roll_back(corpus.home, CORPUS, None).adapter == first
    assert corpus.history()[-1] == ("rolled back", first)
    assert third in corpus.stored()


def self_promoted(corpus: Corpus, weight: float) -> str:
    adapter = corpus.train(weight)
    assert corpus.run() == "promoted"
    return adapter


def test_what_a_person_rolled_back_is_not_promoted_again_by_itself(corpus: Corpus) -> None:
    first, second = self_promoted(corpus, 1), self_promoted(corpus, 2)
    roll_back(corpus.home, CORPUS, None)
    outcome = promote_trained(corpus.home, CORPUS, "run-2")
    assert outcome.what == "set aside"
    assert f"`ragtuned promote letters {second}`" in outcome.sentence
    assert corpus.promoted() == first
    status = corpus_status(corpus.home, CORPUS)
    assert status["set_aside"] == outcome.sentence
    assert status["promotion_refused"] is None
    assert len(status["history"]) == 3
    third = self_promoted(corpus, 3)
    assert corpus_status(corpus.home, CORPUS)["set_aside"] is None
    assert corpus.train(2) == second, "the data went back"
    assert corpus.run() == "promoted", "another adapter was trained since"
    roll_back(corpus.home, CORPUS, None)
    assert corpus.promoted() == third
    assert corpus.run() == "set aside"
    assert promote_by_hand(corpus.home, CORPUS, None, force=False).what == "promoted"
    assert corpus.run() == "unchanged"


def entry(what: str, adapter: str, left: str | None, trained: str) -> Entry:
    return Entry(what, adapter, left, trained, "", "", "", {})  # type: ignore[arg-type]


def test_a_decision_by_hand_holds_until_another_adapter_is_trained() -> None:
    a, b = entry("promoted", "a", None, "a"), entry("promoted", "b", "a", "b")
    back = entry("rolled back", "a", "b", "b")
    assert set_aside([a, b]) == set()
    assert set_aside([a, b, back]) == {"b"}
    assert set_aside([a, b, back, entry("refused", "a", "a", "b")]) == {"b"}, "by hand, of another"
    assert set_aside([a, b, back, entry("refused", "c", "a", "c")]) == set()
    assert set_aside([a, b, back, entry("promoted by hand", "b", "a", "b")]) == set()
    assert set_aside([a, b, entry("promoted by hand", "a", "b", "b")]) == {"b"}
    refused = entry("refused", "c", "b", "c")
    assert set_aside([a, b, refused, entry("rolled back", "a", "b", "c")]) == {"b", "c"}


# ---- crashes and readers ----


def test_a_crash_between_the_history_and_the_link_is_repaired_by_the_next_reading(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = self_promoted(corpus, 1)
    second = corpus.train(2)
    with monkeypatch.context() as patch:
        patch.setattr(adapter_store, "promote", _killed)
        with pytest.raises(KeyboardInterrupt):
            corpus.run()
        assert corpus.promoted() == first
    assert corpus_status(corpus.home, CORPUS)["promoted_adapter"] == second
    with monkeypatch.context() as patch:
        patch.setattr(adapter_store, "promote", _killed)
        with pytest.raises(KeyboardInterrupt):
            roll_back(corpus.home, CORPUS, None)
        assert corpus.promoted() == second
    assert corpus.run() == "set aside", "the rollback is finished first"
    assert corpus.promoted() == first
    assert corpus.history() == [("promoted", first), ("promoted", second), ("rolled back", first)]


def _killed(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_a_home_whose_links_were_lost_gets_them_back(corpus: Corpus) -> None:
    adapter = self_promoted(corpus, 1)
    (corpus.home.adapters / CORPUS / "current").unlink()
    assert corpus_status(corpus.home, CORPUS)["promoted_adapter"] == adapter


def test_a_home_copied_with_its_links_followed_gets_them_back(corpus: Corpus) -> None:
    first, second = self_promoted(corpus, 1), self_promoted(corpus, 2)
    link = corpus.home.adapters / CORPUS / "current"
    for adapter, copied in ((second, second), (second, first)):
        link.unlink()
        shutil.copytree(link.with_name(copied), link)
        assert corpus_status(corpus.home, CORPUS)["promoted_adapter"] == adapter
        assert link.is_symlink()
        assert corpus.stored() == {first, second}
    assert roll_back(corpus.home, CORPUS, None).adapter == first


def forgetting(corpus: Corpus) -> Path:
    """The note of a forgetting that is not finished."""
    note = corpus.home.corpora / f".{CORPUS}.forgetting.json"
    begun = Forgetting(document="one.txt", paths=(), files=(), questions=(), gold=())
    note.write_text(begun.model_dump_json())
    return note


def test_what_was_promoted_does_not_answer_again_while_a_document_is_being_forgotten(
    corpus: Corpus,
) -> None:
    adapter = self_promoted(corpus, 1)
    link = corpus.home.adapters / CORPUS / "current"
    note = forgetting(corpus)
    link.unlink()
    status = corpus_status(corpus.home, CORPUS)
    assert status["promoted_adapter"] is None
    assert "forgetting one.txt is unfinished: `ragtuned forget letters`" in status["forgetting"]
    shutil.copytree(link.with_name(adapter), link)
    assert corpus_status(corpus.home, CORPUS)["promoted_adapter"] is None
    shutil.rmtree(link)
    assert corpus.run() == "promoted", "what is made anew answers"
    note.unlink()
    assert corpus_status(corpus.home, CORPUS)["forgetting"] is None


def test_an_adapter_set_aside_is_promoted_where_none_answers(corpus: Corpus) -> None:
    """After a document was forgotten, training may give the same weights again."""
    first, second = self_promoted(corpus, 1), self_promoted(corpus, 2)
    roll_back(corpus.home, CORPUS, None)
    assert corpus.run() == "set aside"
    (corpus.home.adapters / CORPUS / "current").unlink()
    shutil.rmtree(corpus.home.adapters / CORPUS / first)
    assert corpus_status(corpus.home, CORPUS)["set_aside"] is None
    assert corpus.run() == "promoted"
    assert corpus.promoted() == second


def test_an_adapter_promoted_before_there_was_a_history_can_be_rolled_back_to(
    corpus: Corpus,
) -> None:
    old = corpus.store(1)
    adapter_store.promote(corpus.home.adapters, CORPUS, old)
    self_promoted(corpus, 2)
    assert roll_back(corpus.home, CORPUS, None).adapter == old


def test_a_damaged_history_is_named(corpus: Corpus) -> None:
    corpus.train(1)
    file = corpus.home.adapters / CORPUS / "history.json"
    for damaged in ("[{", '{"a": 1}', '[{"what": "promoted"}]'):
        file.write_text(damaged)
        with pytest.raises(PromotionError, match=r"history\.json: not a history"):
            corpus.run()


def test_a_reader_sees_the_old_adapter_or_the_new_one(corpus: Corpus) -> None:
    names = [corpus.store(1), corpus.store(2)]
    adapters = corpus.home.adapters
    adapter_store.promote(adapters, CORPUS, names[0])
    done = threading.Event()
    seen: set[str] = set()

    def read() -> None:
        while not done.is_set():
            seen.add(adapter_store.current(adapters, CORPUS, EMBEDDED_MODEL).name)

    with ThreadPoolExecutor() as readers:
        reader = readers.submit(read)
        turn = 0
        while turn < 400 or not (reader.done() or len(seen) == 2):  # a busy machine reads late
            adapter_store.promote(adapters, CORPUS, names[turn % 2])
            turn += 1
        done.set()
        reader.result()
    assert seen == set(names)


def test_a_promotion_that_goes_on_is_waited_for(corpus: Corpus) -> None:
    adapter = self_promoted(corpus, 1)
    other = corpus.store(2)
    read: list[str | None] = []

    def status() -> None:
        read.append(corpus_status(corpus.home, CORPUS)["promoted_adapter"])

    with promotion_history.locked(corpus.home, CORPUS) as entries:
        adapter_store.promote(corpus.home.adapters, CORPUS, other)  # as if between the two
        reader = threading.Thread(target=status)
        reader.start()
        reader.join(0.2)
        assert reader.is_alive()
        promotion_history.append(
            corpus.home, CORPUS, entries, entry("promoted", other, adapter, other)
        )
    reader.join()
    assert read == [other]


# ---- retention ----


def test_adapters_that_nothing_leads_back_to_are_deleted(corpus: Corpus) -> None:
    settings = {"promotion": {"keep_adapters": 2}}
    corpus.home.register(CORPUS, corpus.home.documents(CORPUS), None, settings)
    control, variant = corpus.store(100), corpus.store(101)
    corpus.record("control", control)
    corpus.record("ablation_both", variant)
    promoted, refused = [], []
    for weight in range(1, 6):
        promoted.append(self_promoted(corpus, weight))
        refused.append(corpus.train(10 + weight, right=0))
        assert corpus.run() == "refused"
    orphan = corpus.store(200)  # a training that was not recorded
    last = self_promoted(corpus, 6)
    assert corpus.stored() == {last, *promoted[-2:], refused[-1], control, variant}
    assert orphan not in corpus.stored()
    assert len(corpus.history()) == 11, "entries stay"
    assert set(promotions.kept_numbers(corpus.home, CORPUS)) <= corpus.stored()
    assert not list((corpus.home.adapters / CORPUS).glob("*.tmp"))
    roll_back(corpus.home, CORPUS, None)
    assert corpus.promoted() == promoted[-1]
    assert last in corpus.stored(), "a rollback deletes nothing"


def test_the_promoted_adapter_is_never_deleted(corpus: Corpus) -> None:
    adapter = self_promoted(corpus, 1)
    with pytest.raises(adapter_store.AdapterError, match="answers; it is not deleted"):
        adapter_store.delete(corpus.home.adapters, CORPUS, adapter)


# ---- the asset and the commands ----


def test_the_asset_shows_what_was_compared(corpus: Corpus) -> None:
    def materialised(instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
        home = HomeResource(folder=str(corpus.home.folder))
        result = dg.materialize(
            [promotion], instance=instance, partition_key=CORPUS, resources={"home": home}
        )
        return result.asset_materializations_for_node("promotion")

    first = corpus.train(1)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(corpora.name, [CORPUS])
        [made] = materialised(instance)
        assert made.metadata["previous_adapter"].value == "none"
        second = corpus.train(2, right=38)
        [made] = materialised(instance)
        assert made.tags["dagster/data_version"] == second
        plain = {name: value.value for name, value in made.metadata.items()}
        assert plain["held_out_wording"] == 0.95
        assert plain["held_out_wording, promoted"] == 0.9
        assert plain["held_out_wording, promoted, questions of both"] == QUESTIONS
        assert (plain["history"], plain["previous_adapter"]) == (2, first)
        assert "checks.max_drop" in plain["compared"]
        corpus.train(3, right=0)
        assert materialised(instance) == []
    assert corpus.promoted() == second


def test_the_report_has_what_answers_and_the_verdict_and_the_last_decisions(
    corpus: Corpus,
) -> None:
    adapter = corpus.store(1)
    corpus.record("tuned", adapter)
    told = promotions.report_of_promotion(corpus.home, CORPUS)
    assert (told["answers"], told["trained"], told["compared"]) == (None, adapter, [])
    assert "has no scorecard yet" in told["reasons"][0]
    made = [self_promoted(corpus, weight) for weight in range(1, 6)]
    made.append(corpus.train(6, right=38))
    before = promotions.report_of_promotion(corpus.home, CORPUS)
    assert corpus.run() == "promoted"
    after = promotions.report_of_promotion(corpus.home, CORPUS)
    assert (before["answers"], after["answers"]) == (made[-2], made[-1])
    assert after["compared"] == before["compared"], "a run may write the page after the promotion"
    assert "promoted" in {each["against"] for each in after["compared"]}
    worse = corpus.train(7, right=0)
    corpus.run()
    told = promotions.report_of_promotion(corpus.home, CORPUS)
    assert (told["answers"], told["trained"]) == (made[-1], worse)
    assert len(told["reasons"]) == 2
    decisions = [(each["what"], each["adapter"]) for each in told["decisions"]]
    assert decisions == [
        ("refused", worse),
        *(("promoted", each) for each in made[:1:-1]),
    ]
    assert promotions.report_of_promotion(corpus.home, CORPUS) == told


def test_a_folder_that_is_no_corpus_keeps_none_from_being_shown(corpus: Corpus) -> None:
    (corpus.home.corpora / "my notes").mkdir()
    home = ["--home", str(corpus.home.folder)]
    shown = CliRunner().invoke(app, ["status", *home])
    assert shown.exit_code == 0
    assert "promoted adapter" in shown.output
    assert "my notes is no corpus: corpus name 'my notes': use 1 to 64 letters" in shown.output
    told = json.loads(CliRunner().invoke(app, ["status", "--json", *home]).output)
    assert [each["corpus"] for each in told["corpora"]] == [CORPUS]
    assert len(told["misnamed"]) == 1


def test_the_commands_say_that_a_forgetting_is_unfinished(
    corpus: Corpus, capsys: pytest.CaptureFixture[str]
) -> None:
    forgetting(corpus)
    entry = corpus_status(corpus.home, CORPUS)
    for show in (show_status, show_results):
        show(entry)
        assert "forgetting one.txt is unfinished" in " ".join(capsys.readouterr().out.split())


def test_the_commands_say_what_answers_now(corpus: Corpus) -> None:
    home = ["--home", str(corpus.home.folder)]
    first, second = self_promoted(corpus, 1), self_promoted(corpus, 2)
    worse = corpus.train(3, right=0)
    run = CliRunner().invoke
    refused = run(app, ["promote", CORPUS, *home])
    assert refused.exit_code == 1
    assert "the setting checks.max_drop allows 0.050" in refused.output
    assert "--force promotes it all the same" in refused.output
    back = run(app, ["rollback", CORPUS, *home])
    assert back.exit_code == 0
    assert f"adapter {first} answers now (before: {second}, set aside until" in back.output
    forced = run(app, ["promote", CORPUS, worse, "--force", *home])
    assert forced.exit_code == 0
    assert "in spite of the gate: on held-out wordings" in forced.output
    assert f"adapter {worse} answers now (before: {first})" in forced.output
    again = run(app, ["promote", CORPUS, worse, *home])
    assert again.output == f"{CORPUS}: adapter {worse} answers already\n"
    shown = run(app, ["status", CORPUS, *home]).output
    assert "promoted by hand" in shown
    assert "rolled back to" in shown
    prepare_environment(corpus.home)
    with dg.DagsterInstance.get() as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("promoted_adapter"))
        assert event.asset_materialization.partition == CORPUS
        assert event.asset_materialization.tags["dagster/data_version"] == worse
    with alone(corpus.home, CORPUS):
        busy = run(app, ["rollback", CORPUS, *home])
    assert busy.exit_code == 1
    assert "another run of corpus 'letters' is going on" in busy.output
    assert corpus.promoted() == worse
    assert os.environ["RAGTUNED_HOME"] == str(corpus.home.folder)
