"""`ragtuned export`, of a home made by hand: what leaves it, and what must not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from errno import ENOSPC
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import Result
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from ragtuned_pipeline.cli import app
from ragtuned_pipeline.evaluation.scorecard import score, write_scorecard
from ragtuned_pipeline.files import TEMPORARY
from ragtuned_pipeline.orchestration.answering import prepared_system
from ragtuned_pipeline.orchestration.exporting import new_folder
from ragtuned_pipeline.orchestration.forgetting import Forgetting
from ragtuned_pipeline.orchestration.home import Home
from ragtuned_pipeline.orchestration.io import TableStore
from ragtuned_pipeline.orchestration.locks import alone
from ragtuned_pipeline.orchestration.promotions import promote_by_hand
from ragtuned_pipeline.orchestration.training import Training, training_file
from ragtuned_pipeline.orchestration.versions import versions
from ragtuned_pipeline.settings import TuningSettings
from ragtuned_pipeline.tables import SCHEMAS, content_hash, table
from ragtuned_pipeline.tuning import adapter_store
from ragtuned_pipeline.tuning.export import CannotExport
from ragtuned_pipeline_tests.evaluation.judging import held_out_wordings
from ragtuned_pipeline_tests.tuning.adapters import random_adapter

CORPUS = "letters"
SECRET = "the Hask Dam stands at Corvane"  # a sentence of the corpus
ASKED = ("Where does the Hask Dam stand?", "Who founded Marrowgate College?", "What is a bell?")
RESULT = {
    "adapter": "/somewhere/of/this/machine",
    "rows": 12,
    "tokens": 3456,
    "steps": 78,
    "seconds": 1.0,
    "trainable_parameters": 910,
    "losses": [[1, 2.0], [78, 0.125]],
    "held_out_losses": [[78, 0.25]],
}


@dataclass(frozen=True)
class World:
    """A home whose corpus has two judged adapters; the later one, `new`, answers."""

    home: Home
    old: str
    new: str

    def export(self, *arguments: str) -> Result:
        given = ["export", CORPUS, "--home", str(self.home.folder), "--format", *arguments]
        return CliRunner().invoke(app, given)

    def done(self, *arguments: str) -> str:
        result = self.export(*arguments)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    def refused(self, *arguments: str, status: int = 1) -> str:
        result = self.export(*arguments)
        assert result.exit_code == status, result.output
        sentence = result.stderr.splitlines()[-1]  # after what loading weights draws
        assert sentence.startswith("ragtuned: ")
        return sentence


def _tables(store: TableStore) -> None:
    text = f"{SECRET}."
    for name in ("text_units", "entities", "relationships", "communities", "community_reports"):
        store.write(name, CORPUS, SCHEMAS[name].empty_table())
    document = dict.fromkeys(SCHEMAS["documents"].names) | {
        "id": "doc-1",
        "human_readable_id": 0,
        "title": "one",
        "text": text,
        "text_unit_ids": [],
        "path": "one.txt",
    }
    store.write("documents", CORPUS, table("documents", [document]))
    row = {
        "id": "qa-1",
        "fact_id": "fact-1",
        "kind": "local",
        "system": None,
        "prompt": ASKED[0],
        "completion": text,
        "n_tokens": 20,
        "epochs": 8,
    }
    store.write("training_rows", CORPUS, table("training_rows", [row]))


def _judged(home: Home, made: Path, right: int) -> str:
    """Store an adapter as the last trained, with so many right answers of 20, and promote it."""
    store = TableStore(home.tables)
    adapter = adapter_store.store(made, home.adapters, CORPUS, "embedded")
    settings = TuningSettings().model_dump(mode="json")
    training = Training("key", adapter, "base-1", settings, RESULT)
    training_file(home, CORPUS, "tuned").write_text(json.dumps(asdict(training)))
    queries, given = held_out_wordings(f"{SECRET}?", "Corvane", 20, right)
    rows = store.read("training_rows", CORPUS)
    scorecard = score(
        corpus=CORPUS,
        queries=queries,
        answers=given,
        control_queries=queries.slice(0, 0),
        control_answers=given.slice(0, 0),
        descriptions={},
        skipped={},
        qa_pairs=SCHEMAS["qa_pairs"].empty_table(),
        training_rows=rows,
        earlier_facts=None,
        coverage=SCHEMAS["coverage"].empty_table(),
        left_out={},
        teacher={},
        grades=SCHEMAS["grades"].empty_table(),
        win_rates=SCHEMAS["win_rates"].empty_table(),
        judge={},
        ablation={},
        general_ability={"language_loss": {"tuned": 4.0, "base": 4.0}},
        versions=versions(training, rows, queries, "transformers"),
        seed=1,
    )
    write_scorecard(scorecard, home.report(CORPUS) / "scorecard.json")
    store.write("queries", CORPUS, queries)
    store.write("answers", CORPUS, given)
    promote_by_hand(home, CORPUS, adapter, force=True)
    return adapter


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("exporting")
    documents = folder / "documents"
    documents.mkdir()
    (documents / "one.txt").write_text(f"{SECRET}.")
    home = Home(folder / "home")
    home.register(CORPUS, documents, None, {})
    _tables(TableStore(home.tables))
    old = _judged(home, random_adapter(folder / "one", seed=1), right=15)
    new = _judged(home, random_adapter(folder / "two", seed=2), right=18)
    return World(home, old, new)


def asked_with_transformers(model: torch.nn.Module, tokenizer_folder: Path) -> list[str]:
    """Ask as the model card says."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    given = []
    for question in ASKED:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)  # type: ignore[operator]
        answer = output[0, inputs["input_ids"].shape[1] :]
        given.append(tokenizer.decode(answer, skip_special_tokens=True).strip())
    return given


# ---- adapter, merged ----


@pytest.fixture(scope="module")
def asked(world: World) -> list[str]:
    """What `ragtuned ask` gives, to as many words as here."""
    settings = {"evaluation": {"max_answer_tokens": 24}}
    world.home.register(CORPUS, world.home.documents(CORPUS), None, settings)
    with prepared_system(world.home, CORPUS, "tuned") as answerer:
        return [reply.text for reply in answerer.answer(list(ASKED))]


def test_the_exported_adapter_answers_as_the_corpus_does(
    world: World, asked: list[str], tmp_path: Path
) -> None:
    target = tmp_path / "some" / "place"
    assert world.new in world.done("adapter", "--output", str(target))
    base = AutoModelForCausalLM.from_pretrained(target / "base_model", dtype="float32")
    untuned = asked_with_transformers(base, target / "base_model")
    model = PeftModel.from_pretrained(base, str(target))
    assert asked_with_transformers(model, target / "base_model") == asked
    assert untuned != asked, "else nothing is shown"
    assert list(tmp_path.rglob(".*")) == [], "nothing half is left"


def test_merged_weights_answer_alone(world: World, asked: list[str], tmp_path: Path) -> None:
    target = tmp_path / "merged"
    world.done("merged", "--output", str(target), "--dtype", "float32")
    model = AutoModelForCausalLM.from_pretrained(target)
    assert asked_with_transformers(model, target) == asked
    assert "merged in float32" in (target / "README.md").read_text()


def test_merged_weights_are_of_the_bases_type_unless_said(world: World, tmp_path: Path) -> None:
    said = world.done("merged", "--output", str(tmp_path / "merged"))
    assert "in bfloat16: rounding moved the weights by" in said
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_the_card_holds_what_made_it_and_no_word_of_the_corpus(
    world: World, tmp_path: Path
) -> None:
    target = tmp_path / "adapter"
    world.done("adapter", "--output", str(target))
    text = ModelCard.load(target / "README.md").text
    rows = TableStore(world.home.tables).read("training_rows", CORPUS)
    for line in (
        f"| adapter (content hash) | `{world.new}` |",
        f"| training rows | 1 | `{content_hash(rows)}` |",
        "| documents | 1 | `",
        "| LoRA rank, alpha | 4, 8 |",
        "| learning rate | 0.002 |",
        "| base model's weights while tuning | float32 |",
        "| tokens of all epochs | 3,456 |",
        "| steps | 78 |",
        "| last loss on training rows | 0.125 |",
        "| last loss on held-out wordings | 0.25 |",
        "| held-out wordings | 20 | holds the right words | 0.900 (",
        "A person promoted it (",
        "transformers 5.",
    ):
        assert line in text, line
    places = [str(world.home.folder), str(world.home.documents(CORPUS)), "/somewhere/of"]
    for file in target.rglob("*"):
        if file.is_file() and file.suffix != ".safetensors":
            written = file.read_text()
            for private in (*places, "Hask", "Corvane", "Marrowgate"):
                assert private not in written, (file, private)


def test_a_quantised_training_that_stopped_early_is_told_so(world: World, tmp_path: Path) -> None:
    file = training_file(world.home, CORPUS, "tuned")
    before = file.read_text()
    training = json.loads(before)
    training["settings"]["quantization"] = "nf4"
    training["result"] |= {"stopped_at_step": 60, "kept_step": 40}
    file.write_text(json.dumps(training))
    try:
        world.done("adapter", "--output", str(tmp_path / "adapter"))
    finally:
        file.write_text(before)
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "| base model's weights while tuning | quantised to nf4 (QLoRA) |" in text
    assert "| steps | 60 of 78, stopped early, with the weights of step 40 |" in text


def test_of_an_earlier_adapter_only_what_is_known_is_said(world: World, tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    world.done("adapter", "--adapter", world.old, "--output", str(target))
    text = (target / "README.md").read_text()
    assert f"`{world.old}`" in text
    assert "| held-out wordings | 20 | holds the right words | 0.750 | 0.000 |" in text
    assert "The rest of its recipe is not known any more" in text
    assert "3,456" not in text, "the recipe of another adapter"
    assert "0.900" not in text, "the scores of another adapter"


def test_rows_that_have_changed_since_are_not_called_its_data(world: World, tmp_path: Path) -> None:
    store = TableStore(world.home.tables)
    rows = store.read("training_rows", CORPUS)
    store.write("training_rows", CORPUS, rows.slice(0, 0))
    try:
        world.done("adapter", "--output", str(tmp_path / "adapter"))
    finally:
        store.write("training_rows", CORPUS, rows)
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert "Which versions of the data it was made from is not known any more" in text
    assert content_hash(rows) not in text


# ---- gguf ----


def converter(file: Path, text: str) -> Path:
    head = "import json, pathlib, struct, sys\nmodel, _, out, _, kind = sys.argv[1:]\n"
    file.write_text(head + text)
    return file


def test_gguf_is_made_of_the_merged_weights(world: World, tmp_path: Path) -> None:
    program = converter(
        tmp_path / "convert_hf_to_gguf.py",
        "weights = (pathlib.Path(model) / 'model.safetensors').read_bytes()\n"
        "header = json.loads(weights[8:8 + int.from_bytes(weights[:8], 'little')])\n"
        "header.pop('__metadata__', None)\n"
        "assert {each['dtype'] for each in header.values()} == {'F32'} and kind == 'f16'\n"
        "file = struct.pack('<4sIQQ', b'GGUF', 3, len(header), 1)\n"
        "pathlib.Path(out).write_bytes(file)\n",
    )
    target = tmp_path / "letters.gguf"
    said = world.done("gguf", "--converter", str(program), "--output", str(target))
    assert "GGUF version 3, 38 tensors" in said
    assert target.is_file()
    assert set(tmp_path.iterdir()) == {program, target}, "the merged weights are gone"


def test_a_converter_that_fails_leaves_what_was_there(world: World, tmp_path: Path) -> None:
    target = tmp_path / "letters.gguf"
    target.write_text("an earlier one")
    program = converter(
        tmp_path / "convert.py", "open(out, 'w').write('half')\nsys.exit('no such tokenizer')\n"
    )
    said = world.refused("gguf", "--converter", str(program), "--output", str(target))
    assert f"{program} failed with exit status 1: no such tokenizer" in said
    assert target.read_text() == "an earlier one"
    assert set(tmp_path.iterdir()) == {program, target}


def test_a_converter_that_cannot_be_started_is_named(world: World, tmp_path: Path) -> None:
    program = tmp_path / "convert"
    program.write_text("#!/bin/sh\n")  # and is not executable
    said = world.refused(
        "gguf", "--converter", str(program), "--output", str(tmp_path / "letters.gguf")
    )
    assert said == f"ragtuned: {program} cannot be started: Permission denied"
    assert list(tmp_path.iterdir()) == [program]


@pytest.mark.parametrize("merged_fits", [False, True])
def test_a_disk_without_room_is_that_of_the_outputs_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merged_fits: bool
) -> None:
    free = [1 << 40] if merged_fits else []
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=free.pop() if free else 0)
    )
    program = converter(tmp_path / "convert.py", "sys.exit('it was started')\n")
    target = tmp_path / "models" / "letters.gguf"
    said = world.refused("gguf", "--converter", str(program), "--output", str(target))
    assert said.startswith(f"ragtuned: {target.parent}: the weights need")
    assert not list(target.parent.iterdir())


def test_a_folder_is_no_file_to_write(world: World, tmp_path: Path) -> None:
    program = converter(tmp_path / "convert.py", "sys.exit('it was started')\n")
    said = world.export("gguf", "--converter", str(program), "--output", str(tmp_path)).stderr
    assert said == f"ragtuned: --output {tmp_path} is a folder; name a file in it\n"


def test_what_a_killed_conversion_would_leave_is_what_doctor_looks_for(
    world: World, tmp_path: Path
) -> None:
    program = converter(
        tmp_path / "convert.py",
        "there = pathlib.Path(out)\nthere.touch()\n"
        "sys.exit(json.dumps([each.name for each in there.parent.iterdir()]))\n",
    )
    target = tmp_path / "models" / "letters.gguf"
    said = world.export("gguf", "--converter", str(program), "--output", str(target)).stderr
    left = json.loads(said.splitlines()[-1].partition("status 1: ")[2])
    assert len(left) == 2, "the merged model, and the file"
    assert all(TEMPORARY.fullmatch(each) for each in left)
    assert f"merging adapter {world.new} into embedded (0.0 GiB, float32)\n" in said
    assert f"converting it with {program}\n" in said


def test_a_full_disk_is_the_outputs_and_other_files_are_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    full = OSError(ENOSPC, "No space left on device")
    with pytest.raises(CannotExport, match=f"^--output {target}: No space"), new_folder(target):
        raise full
    with pytest.raises(FileNotFoundError), new_folder(target) as folder:
        (folder / "nothing").read_text()
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_converter_it_is_said_before_anything_is_merged(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("LLAMA_CPP_CONVERTER", raising=False)
    assert "--converter" in world.refused("gguf", "--output", str(tmp_path / "letters.gguf"))
    assert not list(tmp_path.iterdir())


# ---- rows and graph ----


@pytest.mark.parametrize("form", ["messages", "alpaca", "sharegpt"])
def test_rows_go_to_a_file_or_to_stdout(world: World, form: str, tmp_path: Path) -> None:
    printed = world.done(form)
    assert SECRET in json.dumps(json.loads(printed))
    file = tmp_path / "rows.jsonl"
    assert f"1 {form} lines written to {file}" in world.done(form, "--output", str(file))
    assert file.read_text() == printed


def test_the_graph_is_a_folder_of_tables(world: World, tmp_path: Path) -> None:
    target = tmp_path / "output"
    target.mkdir()  # empty
    world.done("graphrag", "--output", str(target))
    assert {file.stem for file in target.iterdir()} == {
        "documents",
        "text_units",
        "entities",
        "relationships",
        "communities",
        "community_reports",
    }


def test_without_a_place_it_lands_in_the_working_folder(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    world.done("graphrag")
    assert (tmp_path / "letters-graphrag" / "entities.parquet").is_file()


# ---- what is refused ----


@pytest.mark.parametrize("form", ["adapter", "merged", "graphrag"])
def test_a_folder_with_something_in_it_stays_as_it_is(
    world: World, form: str, tmp_path: Path
) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    assert "is there and not empty" in world.refused(form, "--output", str(tmp_path))
    assert "not empty" in world.refused(form, "--output", str(tmp_path / "diary.txt"))
    assert [file.name for file in tmp_path.iterdir()] == ["diary.txt"]
    assert (tmp_path / "diary.txt").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_named(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = str(tmp_path / "file" / "below")
    for form in ("adapter", "graphrag", "messages"):
        assert f"--output {below}: " in world.refused(form, "--output", below)
    program = converter(tmp_path / "convert.py", "")
    said = world.refused("gguf", "--converter", str(program), "--output", below)
    assert f"--output {below}: " in said


EVERY_FORM = ("adapter", "merged", "gguf", "messages", "alpaca", "sharegpt", "graphrag")


@pytest.mark.parametrize("form", EVERY_FORM)
def test_nothing_leaves_while_a_document_is_being_forgotten(
    world: World, form: str, tmp_path: Path
) -> None:
    own = ["--converter", sys.executable] if form == "gguf" else []
    target = tmp_path / "out"
    note = world.home.forgetting_note(CORPUS)
    forgetting = Forgetting(
        document="one.txt", paths=("one.txt",), files=("one.txt",), questions=(), gold=()
    )
    note.write_text(forgetting.model_dump_json())
    try:
        said = world.refused(form, *own, "--output", str(target))
        note.write_text("{}")
        damaged = world.refused(form, *own, "--output", str(target))
    finally:
        note.unlink()
    assert "ragtuned forget letters" in said
    assert "is damaged" in damaged
    assert not list(tmp_path.iterdir())


def test_nothing_is_read_while_a_run_writes(world: World, tmp_path: Path) -> None:
    with alone(world.home, CORPUS):
        for form in ("adapter", "messages", "graphrag"):
            said = world.refused(form, "--output", str(tmp_path / "out"))
            assert "another run of corpus 'letters' is going on" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("messages", "--adapter", "abc"), "--adapter: only with --format adapter or merged"),
        (("adapter", "--dtype", "float32"), "--dtype: only with --format merged"),
        (("merged", "--converter", "x.py"), "--converter: only with --format gguf"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    world: World, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in world.refused(*arguments, status=2)


def test_what_is_not_there_is_named(world: World, tmp_path: Path) -> None:
    output = ("--output", str(tmp_path / "out"))
    said = world.refused("adapter", "--adapter", "abc", *output)
    assert "corpus letters has no adapter abc" in said
    empty = Home(tmp_path / "home")
    empty.register(CORPUS, world.home.documents(CORPUS), None, {})
    nothing = World(empty, "", "")
    assert "has no training rows yet" in nothing.refused("messages")
    assert "has no documents yet" in nothing.refused("graphrag", *output)
    assert "has no promoted adapter" in nothing.refused("adapter", *output)
