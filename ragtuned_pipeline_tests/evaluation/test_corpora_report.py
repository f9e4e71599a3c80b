import re
from pathlib import Path
from typing import Any

import pytest

from ragtuned_pipeline.evaluation.reporting.corpora_report import (
    render_corpora,
    write_corpora_report,
)
from ragtuned_pipeline_tests.evaluation import showcase, world
from ragtuned_pipeline_tests.evaluation.test_report import EVIL, Page


def card(**shares: float) -> dict[str, Any]:
    """A scorecard of an earlier version, without judge or general ability."""

    def summary(share: float) -> dict[str, Any]:
        return {"n": 50, "missing": 0, "contains": share, "contains_interval": [share, share]}

    return {
        "systems": {name: {"held_out_wording": summary(share)} for name, share in shares.items()},
        "skipped": {},
        "control_shuffled": {},
    }


def test_every_corpus_has_a_row_and_a_link_to_its_page(tmp_path: Path) -> None:
    cards = {"news": showcase.inputs().scorecard, "harrow": world.scored(), "old": card(tuned=0.5)}
    page = write_corpora_report(cards, tmp_path / "reports")
    assert page == tmp_path / "reports" / "index.html"
    parsed = Page(page.read_text(encoding="utf-8"))
    links = [a["href"] or "" for tag, a in parsed.tags if tag == "a"]
    assert [link for link in links if not link.startswith("#")][:3] == [
        "harrow/index.html",
        "news/index.html",
        "old/index.html",
    ]
    for tag, attributes in parsed.tags:
        for name in ("src", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)


def test_a_mean_counts_every_corpus_once_and_says_where_one_is_missing() -> None:
    html = render_corpora(
        {"a": card(tuned=0.9, base=0.1), "b": card(tuned=0.5, base=0.3, zeta=0.7)}
    )
    rows = re.findall(r"<tr>.*?</tr>", html, flags=re.S)
    means = {
        system: next(
            row for row in rows if row.startswith(f'<tr><td class="name" data-value="{system}"')
        )
        for system in ("base model", "zeta")
    }
    assert re.search(r'data-value="0\.2"[^>]*>20\s%<small[^>]*>10–30</small>', means["base model"])
    assert re.search(r'data-value="0\.7"[^>]*>70\s%<small[^>]*>70–70, of 1</small>', means["zeta"])


def test_the_headline_is_of_the_systems_that_took_part_in_all_corpora() -> None:
    html = render_corpora(
        {"a": card(tuned=0.9, base=0.1), "b": card(tuned=0.5, base=0.3, zeta=0.7)}
    )
    [headline] = re.findall(r'class="headline">(.*?)</p>', html)
    assert headline == (
        "On average over 2 corpora: asked about facts it was tuned on, in wordings it has not "
        "seen, the tuned model gives the right words in 70\u00a0% of its answers, against "
        "20\u00a0% for the base model."
    )


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ({}, "No corpus has been evaluated"),
        ({"a": card()}, "not evaluated"),
        ({"a": card(base=0.2)}, "The tuned model was evaluated on no corpus"),
        ({"a": card(tuned=0.4)}, "No judge compared the tuned model"),
    ],
)
def test_what_is_not_there_is_said(cards: dict[str, Any], told: str) -> None:
    assert told in render_corpora(cards)


def test_win_rates_and_a_judge_of_rules_are_shown() -> None:
    full = showcase.inputs().scorecard
    html = render_corpora({"a": full, "b": {**full, "judge": {"engine": "rules"}}})
    assert "On b the judge is a set of rules that read no meaning" in html
    assert html.count("<h3>Local questions") == 1
    assert re.search(r'data-value="\d">\d of 6<small[^>]*>\d lost</small>', html)


def test_names_are_escaped() -> None:
    page = Page(render_corpora({EVIL: {**showcase.inputs().scorecard, "win_rates": []}}))
    assert len(page.scripts) == 1
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
