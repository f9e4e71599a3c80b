import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from ragtuned_pipeline.evaluation.provenance import MEMORY_TABLES, MemoryTables
from ragtuned_pipeline.evaluation.reporting import findings, plots
from ragtuned_pipeline.evaluation.reporting.report import (
    LossCurve,
    ReportInputs,
    render,
    write_report,
)
from ragtuned_pipeline.settings import Settings
from ragtuned_pipeline.tables import Failure, failures_table, table
from ragtuned_pipeline_tests.evaluation import showcase, world

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'
SECTIONS = re.findall(
    r"\w+",
    "scores table wins judge ablation ability cost cases control training coverage promotion graph "
    "failures method limits versions",
)


class Page(HTMLParser):
    """Collects tags, attributes and the script texts; complains about tags left open."""

    VOID = frozenset(("meta", "link", "img", "br", "line", "rect", "circle", "path", "polyline"))

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)


def inputs(**changes: Any) -> ReportInputs:
    _, queries, answers = world.evaluation()
    arguments: dict[str, Any] = {
        "scorecard": world.scored(),
        "queries": queries,
        "answers": answers,
        "judgements": table("judgements", []),
        "grades": world.grades(queries),
        "memory": world.memory(),
        "failures": failures_table([Failure("documents", "bad.bin", "binary file, left out")]),
        "curves": [
            LossCurve("tuned", [(10, 4.0), (20, 1.0)], [(20, 1.2)]),
            LossCurve("control", [(10, 4.1)], []),
        ],
        "settings": Settings().model_dump(mode="json", exclude={"profile"}),
        "promotion": {
            "answers": None,
            "trained": "9f",
            "compared": [],
            "reasons": (),
            "remarks": (),
            "decisions": [],
        },
        "trained_by": "run-1",
        "graph_svg": "<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    }
    return ReportInputs(**arguments | changes)


def test_the_page_has_all_its_sections_and_asks_the_network_for_nothing(tmp_path: Path) -> None:
    write_report(inputs(), tmp_path / "index.html")
    html = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = Page(html)
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == SECTIONS
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert set(links) == {f"#{name}" for name in SECTIONS}
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "url(" not in html
    assert "@import" not in html


def test_what_was_planned_of_the_training_stands_beside_what_it_was(tmp_path: Path) -> None:
    planned = [("minutes", "2.0 at the speed that was set", "1.4")]
    html = render(inputs(planned=planned))
    assert "Planned and measured" in html
    assert "2.0 at the speed that was set" in html
    assert "Planned and measured" not in render(inputs())


def _outline(page: Page) -> dict[str, tuple[int, int, int]]:
    """section -> how many figures, tables and cases it has, in the order of the page."""
    counts: dict[str, list[int]] = {}
    for tag, attributes in page.tags:
        if tag == "section":
            counts[attributes["id"] or ""] = [0, 0, 0]
        elif tag in ("figure", "table", "article"):
            counts[list(counts)[-1]][("figure", "table", "article").index(tag)] += 1
    return {name: (figures, tables, cases) for name, (figures, tables, cases) in counts.items()}


def test_the_outline_of_a_full_page_is_the_golden_one() -> None:
    """Seven systems, eight sets, a judge of all pairs, six variants, two suites, three costs."""
    assert _outline(Page(render(showcase.inputs()))) == {
        "scores": (13, 0, 0),
        "table": (0, 2, 0),
        "wins": (10, 6, 0),
        "judge": (1, 0, 0),
        "ablation": (3, 2, 0),
        "ability": (0, 1, 0),
        "cost": (9, 0, 0),
        "cases": (0, 0, 16),
        "control": (0, 1, 0),
        "training": (1, 1, 0),
        "coverage": (0, 2, 0),
        "promotion": (0, 2, 0),
        "teacher": (0, 1, 0),
        "graph": (1, 0, 0),
        "failures": (0, 1, 0),
        "method": (0, 1, 0),
        "limits": (0, 0, 0),
        "versions": (0, 1, 0),
    }


def _section(html: str, name: str) -> str:
    """The words of one section."""
    [body] = re.findall(rf'<section id="{name}">(.*?)</section>', html, re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", body).split())


def test_the_page_says_what_answers_what_was_compared_and_what_was_decided() -> None:
    told = _section(render(showcase.inputs()), "promotion")
    assert "adapter 3b51e7a0c4d2986f10ab answered" in told
    assert "does not let the last trained adapter 90cd2e5eb283f586be11 pass: On held-out" in told
    assert "The corpus has outgrown what the setting tuning.time_budget_minutes allows." in told
    fallen = "held-out wordings 0.780 the promoted adapter 0.920 0.140 0.050 0.0112 refused"
    assert fallen in told
    assert "failed qa pairs 0.000 the limit 0.200 -0.200 0.050 – passed" in told
    assert "2040-05-01T00:00:00+00:00 promoted 3b51e7a0c4d2986f10ab none" in told
    empty = _section(render(inputs()), "promotion")
    assert "no adapter answered" in empty
    assert "The gate lets the last trained adapter 9f pass." in empty


def test_new_facts_and_those_known_before_are_shown_apart_after_a_retuning() -> None:
    full = showcase.inputs()
    assert "known before" not in render(full)
    held_out = full.queries.filter(pc.field("question_set") == "held_out_wording")
    card = world.scored(
        queries=full.queries,
        answers=full.answers,
        grades=full.grades,
        earlier_facts={held_out["fact_id"][0].as_py()},
    )
    html = render(replace(full, scorecard={**full.scorecard, "systems": card["systems"]}))
    assert html.count('data-value="new facts"') == html.count('data-value="facts known before"') > 0
    assert "and facts that are new since the adapter before this one</summary>" in html


def test_a_scorecard_read_from_its_file_gives_the_same_page() -> None:
    """JSON with sorted keys has another order, of systems and variants too."""
    full = showcase.inputs()
    read = json.loads(json.dumps(full.scorecard, sort_keys=True))
    assert render(replace(full, scorecard=read)) == render(full)


def test_only_pairs_with_the_tuned_model_make_no_matrix() -> None:
    full = showcase.inputs()
    rates = [
        row for row in full.scorecard["win_rates"] if "tuned" in (row["system_a"], row["system_b"])
    ]
    html = render(replace(full, scorecard={**full.scorecard, "win_rates": rates}))
    assert _outline(Page(html))["wins"] == (10, 4, 0)
    assert "Only pairs with the tuned model in them were judged" in html


def test_the_policy_allows_the_pages_own_script_only() -> None:
    page = Page(render(inputs()))
    [script] = page.scripts
    [policy] = [
        a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"
    ]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_graph_is_an_image_whose_scripts_never_run() -> None:
    page = Page(render(inputs()))
    [picture] = [a["src"] or "" for tag, a in page.tags if tag == "img"]
    assert picture.startswith("data:image/svg+xml;base64,")


def test_everything_from_documents_is_escaped() -> None:
    _, queries, answers = world.evaluation()
    card = world.scored(
        corpus=EVIL,
        descriptions={"tuned": EVIL},
        skipped={EVIL: EVIL},
        left_out={EVIL: 1},
        versions={EVIL: EVIL},
    )
    # Without long answers the evidence comes from the documents.
    without = [row | {"long_answer": None, "evidence": None} for row in queries.to_pylist()]
    poisoned: list[dict[str, Any]] = [
        {"scorecard": card},
        {"queries": _poison(queries, "question", "reference_answer", "evidence", "kind")},
        {"answers": _poison(answers, "answer")},
        {"memory": _poisoned("documents", "text"), "queries": table("queries", without)},
        {"memory": _poisoned("documents", "title")},
        {"memory": _poisoned("documents", "path")},
        {"memory": _poisoned("training_rows", "prompt", "completion")},
        {"memory": _poisoned("coverage", "sentence", "reason")},
        {"memory": _poisoned("qa_pairs", "gold")},
        {"memory": _poisoned("entities", "title")},
        {"memory": _poisoned("relationships", "source")},
        {"trained_by": EVIL},
        {"failures": failures_table([Failure(EVIL, EVIL, EVIL)])},
        {"curves": [LossCurve(EVIL, [(1, 1.0)], [(1, 1.0)])]},
        {"grades": _poison(world.grades(queries), "reason")},
    ]
    for changes in poisoned:
        html = render(inputs(**changes))
        _assert_escaped(html)
        assert "alert(&#34;x&#34;)" in html, changes.keys()


def test_everything_that_models_and_settings_say_is_escaped() -> None:
    full = showcase.inputs()
    card = full.scorecard
    evil = {
        name: EVIL.replace('"x"', f'"{name}"')
        for name in [
            "judge",
            "setting",
            "dimension",
            "system",
            "variant",
            "why",
            "suite",
            "measure",
            "teacher",
        ]
    }
    rates = card["win_rates"]
    variant = showcase.ABLATION["variants"]["both"]
    suite = showcase.ABILITY["plain_english"]
    changes = {
        "judge": card["judge"] | {"identity": evil["judge"], "settings": {"a": evil["setting"]}},
        "win_rates": rates
        + [row | {"dimension": evil["dimension"]} for row in rates]
        + [row | {"system_a": evil["system"]} for row in rates],
        "ablation": {
            "variants": {evil["variant"]: variant, "both": variant},
            "skipped": {"no_replay": evil["why"]},
        },
        "general_ability": {evil["suite"]: suite | {"measure": evil["measure"]}},
        "teacher": showcase.TEACHER | {"model": evil["teacher"]},
    }
    poisoned = replace(
        full, scorecard={**card, **changes}, judgements=_poison(full.judgements, "reason")
    )
    html = render(poisoned)
    _assert_escaped(html)
    for name in ("x", *evil):
        assert f"alert(&#34;{name}&#34;)" in html, name


def _assert_escaped(html: str) -> None:
    page = Page(html)
    assert len(page.scripts) == 1
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]


def _poisoned(name: str, *columns: str) -> MemoryTables:
    memory = world.memory()
    return replace(memory, **{name: _poison(getattr(memory, name), *columns)})


def _poison(data: pa.Table, *columns: str) -> pa.Table:
    rows = data.to_pylist()
    return pa.Table.from_pylist(
        [row | {name: f"{EVIL} {row[name]}" for name in columns} for row in rows], data.schema
    )


def test_the_same_inputs_give_the_same_page() -> None:
    assert render(inputs()) == render(inputs())


def test_numbers_and_reasons_are_on_the_page() -> None:
    html = render(inputs())
    for text in (
        "The corpus does not fit.",
        "as the reference says",
        "bad.bin",
        "binary file, left out",
        "held out as a fact",
        "The bakery sells forty-two sorts of bread.",
        "tuning.time_budget_minutes",
        "5 of 6",
        "1.200 at the end",
        "a training row of this fact",
    ):
        assert text in html, text


def test_a_case_leads_from_its_answer_to_row_fact_sentence_document_and_run() -> None:
    card = world.scored(versions={"adapter": "adapter-1", "data training_rows": "rows-1"})
    html = render(inputs(scorecard=card))
    cases = html[html.index('<section id="cases">') : html.index('<section id="control">')]
    sentence, question, gold = world.FACTS["fact-3"]
    [case] = [
        each.split("</article>")[0]
        for each in cases.split("<article")
        if question in each.split("</p>")[0]
    ][:1]
    lineage = case[case.index("Where the answer comes from") :]
    steps = [
        "the corpus, on the question",
        f"{question} (wording",
        "a training row of this fact; similarity",
        f"<b>The fact asked for</b>: {gold}",
        sentence,
        "quell.txt",
        "characters 0–",
        "adapter-1",
        "rows-1",
        "run-1",
    ]
    places = [lineage.index(step) for step in steps[:4]]
    for step in steps[4:]:
        places.append(lineage.index(step, places[-1]))
    assert places == sorted(places)


def test_a_case_says_so_where_no_training_row_is_near() -> None:
    _, _, answers = world.evaluation()
    lost = [row | {"answer": "Nobody of that name."} for row in answers.to_pylist()]
    html = render(inputs(answers=table("answers", lost)))
    notice = "No training row that states something is near to question and answer: the nearest"
    assert html.count(notice) == html.count("<article") > 0
    usual = render(inputs())
    assert usual.count(notice) < usual.count("<article")


def test_a_bare_run_still_has_a_page() -> None:
    nothing, nobody = table("queries", []), table("answers", [])
    card = world.scored(
        queries=nothing,
        answers=nobody,
        control_queries=nothing,
        control_answers=nobody,
        win_rates=table("win_rates", []),
        judge={},
    )
    html = render(
        inputs(
            scorecard=card,
            queries=nothing,
            answers=nobody,
            grades=table("grades", []),
            failures=failures_table([]),
            curves=[],
            memory=MemoryTables(**{name: table(name, []) for name in MEMORY_TABLES}),
            graph_svg=None,
        )
    )
    for text in (
        "The tuned model was not evaluated",
        "No system answered any question",
        "No loss was recorded",
        "No picture of the graph was made",
        "every item of every stage was processed",
        "There was no shuffled control",
        "No two answers were compared. No judge was asked",
        "No adapter was tuned on a part of the rows",
        "nothing here says what tuning made the model forget",
    ):
        assert text in html, text


def test_the_headline_is_computed() -> None:
    assert findings.headline(world.scored()) == (
        "Asked about facts it was tuned on, in wordings it has not seen, the tuned model gives the "
        "right words in 75\u00a0% of its answers, against 0\u00a0% for the base model and "
        "100\u00a0% for VanillaRAG."
    )


def test_a_headline_on_many_systems_names_the_base_and_the_range() -> None:
    shares = {"tuned": 0.5, "base": 0.1, "tuned_rag": 0.9, "long_context": 0.4, "vanilla_rag": 0.7}
    sets = {name: {"held_out_wording": {"contains": share}} for name, share in shares.items()}
    assert findings.headline({"systems": sets}).endswith(
        "in 50\u00a0% of its answers, against 10\u00a0% for the base model and 40\u00a0% "
        "(long context) to 90\u00a0% (tuned + retrieval) for the 3 others."
    )


def _card(tuned: float, other: float, control: float) -> dict[str, Any]:
    def summary(share: float) -> dict[str, Any]:
        ends = [max(share - 0.05, 0), min(share + 0.05, 1)]
        return {"n": 200, "facts": 50, "contains": share, "contains_interval": ends}

    sets = {"tuned": tuned, "vanilla_rag": other}
    return {
        "systems": {name: {"held_out_wording": summary(share)} for name, share in sets.items()},
        "skipped": {},
        "control_shuffled": summary(control),
    }


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (0.2, "Beside VanillaRAG, the tuned model is clearly ahead on held-out wordings."),
        (0.9, "Beside VanillaRAG, the tuned model is clearly behind on held-out wordings."),
        (0.62, "Beside VanillaRAG, the tuned model is not clearly different on held-out wordings."),
    ],
)
def test_the_verdict_says_so_when_the_tuned_model_loses(other: float, expected: str) -> None:
    assert findings.verdicts(_card(0.6, other, 0.1)) == [expected]


def test_a_control_that_scores_too_is_told() -> None:
    assert "measures what was taught" in findings.control_sentence(_card(0.6, 0.2, 0.1))
    assert "cannot be read as knowledge" in findings.control_sentence(_card(0.6, 0.2, 0.58))


def test_plots_escape_and_stay_inside_their_frame() -> None:
    rows = [plots.Bar(EVIL, 1.0, 0.9, 1.0, "s-0"), plots.Bar("b", 0, 0, 0.1, "s-1")]
    curves = [plots.Line(EVIL, [(0, 0.0), (9, 3.3)], "l-0-rows")]
    marks = [plots.Mark(EVIL, 0, 0.5, "s-0"), plots.Mark("b", 31000, 1, "s-1")]
    drawn = (
        plots.bars(rows, EVIL),
        plots.bars(rows, EVIL, 0.5),
        plots.groups([(EVIL, rows), ("global", rows)], EVIL),
        plots.lines(curves, EVIL, EVIL, EVIL),
        plots.plane(marks, EVIL, EVIL),
    )
    for svg in drawn:
        Page(svg)
        assert "<script" not in svg
        assert "<img" not in svg
        for x in re.findall(r' (?:x|cx|x1|x2)="([\d.-]+)"', svg):
            assert 0 <= float(x) <= plots.WIDTH


@pytest.mark.parametrize("most", [0, 1e-4, 0.3, 1, 4.4, 5, 99, 12345])
def test_ticks_are_few_and_reach_the_top(most: float) -> None:
    ticks = plots._ticks(most)
    assert ticks[0] == 0
    assert ticks[-1] >= most
    assert 2 <= len(ticks) <= 6


def test_bars_around_one_half_begin_there() -> None:
    rows = [plots.Bar("wins", 0.8, 0.7, 0.9, "s-0"), plots.Bar("loses", 0.2, None, None, "s-1")]
    svg = plots.bars(rows, "win rates", 0.5)
    [axis] = re.findall(r'class="axis" x1="([\d.]+)"', svg)
    (win_x, _), (loss_x, loss_width) = re.findall(
        r'<rect[^>]* x="([\d.]+)"[^>]*width="([\d.]+)"', svg
    )
    assert win_x == axis
    assert float(loss_x) + float(loss_width) == pytest.approx(float(axis), abs=0.11)
    assert svg.count('class="whisker"') == 1


def test_groups_scale_to_the_highest_whisker() -> None:
    bars = [
        plots.Bar("local", 0.2, 0.1, 0.3, "v-local"),
        plots.Bar("both", 0.0, 0.0, 0.1, "v-both"),
    ]
    svg = plots.groups([("local queries", bars), ("global queries", bars)], "Fig. 3")
    ticks = re.findall(r'text-anchor="end">([\d.]+)<', svg)
    assert ticks[0] == "0"
    assert 30 <= float(ticks[-1]) < 50
    assert svg.count("<rect") == 4
    assert "local queries" in svg


@pytest.mark.parametrize("spread", [0.0, 0.04, 0.3])
def test_labels_in_the_plane_cover_neither_each_other_nor_a_mark(spread: float) -> None:
    labels = list(findings.SYSTEM_LABELS.values())
    marks = [
        plots.Mark(label, 10 ** (1 + 8 * spread * place / 6), 0.5 + spread * place / 6, "s-0")
        for place, label in enumerate(labels)
    ]
    svg = plots.plane(marks, "cost", "tokens")
    texts = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(start|end)">([^<]+)</text>', svg
    )
    assert {label for *_, label in texts} == set(labels)
    boxes = []
    for x, y, anchor, label in texts:
        width = 6 * len(label)
        left = float(x) - (width if anchor == "end" else 0)
        assert 0 <= left <= plots.WIDTH - width
        boxes.append((left, left + width, float(y)))
    for place, (left, right, y) in enumerate(boxes):
        for other_left, other_right, other_y in boxes[:place]:
            assert right <= other_left or other_right <= left or abs(y - other_y) >= 11
