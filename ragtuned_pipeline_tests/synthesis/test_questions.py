"""What one sentence answers: the questions, the golden strings, and the readings given up."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragtuned_pipeline.synthesis.questions import GAP, SentenceFact, Statement, facts_of

ANCHOR = 'according to "The Ferry"'


def asked(
    text: str,
    speaker: str | None = None,
    anchor: str | None = None,
    kinds: dict[str, str] | None = None,
) -> dict[str, str]:
    """Return direct question -> gold."""
    facts = facts_of(Statement(text, speaker, anchor), kinds)
    return {fact.direct: fact.gold for fact in facts}


@pytest.mark.parametrize(
    ("text", "question", "gold"),
    [
        (
            "Mirela Voss opened the Harrow Bakery in 1987.",
            "When did Mirela Voss open the Harrow Bakery?",
            "1987",
        ),
        (
            "Mirela Voss opened the Harrow Bakery in 1987.",
            "What did Mirela Voss open in 1987?",
            "Harrow Bakery",
        ),
        (
            "Mirela Voss opened the Harrow Bakery in 1987.",
            "Who opened the Harrow Bakery in 1987?",
            "Mirela Voss",
        ),
        ("Maud Okrent carried 61 passengers.", "How many passengers did Maud Okrent carry?", "61"),
        (
            "Maud Okrent carried 61 passengers and two goats.",
            "What did Maud Okrent carry?",
            "61 passengers and two goats",
        ),
        (
            "Ivo Pell lent Brannoch Yard 40,000 crowns.",
            "How many crowns did Ivo Pell lend Brannoch Yard?",
            "40,000",
        ),
        ("Ilse Corran lives in Saltwick.", "Where does Ilse Corran live?", "Saltwick"),
        ("Ilse Corran lives in Saltwick.", "Who lives in Saltwick?", "Ilse Corran"),
        (
            "The Sallow Point Courier was founded by Otto Wrede in 1988.",
            "Who was the Sallow Point Courier founded by in 1988?",
            "Otto Wrede",
        ),
        (
            "Selma Dray had built the lighthouse at Sallow Point in 2029.",
            "Where had Selma Dray built the lighthouse in 2029?",
            "Sallow Point",
        ),
        (
            "Berta Lund has kept bees since 1999.",
            "Since when has Berta Lund kept bees?",
            "1999",
        ),
        (
            "Berta Lund worked in Quell for seven years.",
            "How long did Berta Lund work in Quell?",
            "seven years",
        ),
        ("In 1987, Mirela Voss moved to Harrow.", "Where did Mirela Voss move in 1987?", "Harrow"),
        ("Hanne Brill is the niece of Gideon Pash.", "Who is Hanne Brill?", "niece of Gideon Pash"),
        (
            "Hanne Brill is the niece of Gideon Pash.",
            "Who is the niece of Gideon Pash?",
            "Hanne Brill",
        ),
        (
            "Captain Rurik Pell sailed the Grey Plover from Saltwick.",
            "Where did Captain Rurik Pell sail the Grey Plover from?",
            "Saltwick",
        ),
        (
            "Hanne Brill said that the mayor opened the school in 2031.",
            "When did the mayor open the school, according to Hanne Brill?",
            "2031",
        ),
        (
            "Otto Wrede put the bell in the Anchor Hall in 1990.",
            "When did Otto Wrede put the bell in the Anchor Hall?",
            "1990",
        ),
        (
            "Ada Renk will sell the boat even if Tom Aldane leaves Harrow.",
            "Who will sell the boat?",
            "Ada Renk",
        ),
    ],
)
def test_a_statement_answers_what_was_left_out_of_it(text: str, question: str, gold: str) -> None:
    assert asked(text, anchor=ANCHOR).get(question) == gold or (
        asked(text, anchor=ANCHOR).get(f"{question[:-1]}, {ANCHOR}?") == gold
    )


def test_the_four_cores_of_a_question_say_the_same() -> None:
    statement = Statement("Mirela Voss opened the Harrow Bakery in 1987.")
    assert facts_of(statement)[0] == SentenceFact(
        asks="when",
        gold="1987",
        direct="When did Mirela Voss open the Harrow Bakery?",
        indirect="when Mirela Voss opened the Harrow Bakery",
        cloze="Mirela Voss opened the Harrow Bakery in ___.",
        keywords="Mirela Voss, open, Harrow Bakery",
        names=("Mirela Voss", "Harrow Bakery"),
    )


@pytest.mark.parametrize(
    "text",
    [
        "Did Mirela Voss open the Harrow Bakery in 1987?",
        "Mirela Voss did not open the Harrow Bakery in 1987.",
        "Mirela Voss didn't open the Harrow Bakery in 1987.",
        "Mirela Voss never opened the Harrow Bakery in 1987.",
        "Mirela Voss opened no bakery in Harrow.",
        "Nobody opened the Harrow Bakery in 1987.",
        "If Mirela Voss opened the Harrow Bakery, Tom Aldane left Harrow in 1987.",
        "Tom Aldane will sell the Grey Plover to Ada Renk if the price rises.",
        "Tom Aldane will sell the Grey Plover to Ada Renk unless the price falls.",
        "Mirela Voss might open a bakery in Harrow in 1987.",
        "Mirela Voss would open a bakery in Harrow.",
        "Perhaps Mirela Voss opened the Harrow Bakery in 1987.",
        "Tom Aldane asked whether Ada Renk sold the Grey Plover.",
        "Mirela Voss thinks that Tom Aldane sold the boat.",
        "Open the bakery of Mirela Voss before 7:00.",
        "A history of the Harrow Bakery by Mirela Voss in 1987",
        "Mirela Voss opened the Harrow Bakery and sold:",
        "It opened in Harrow in 1987.",
        "It rained.",
        "Mirela Voss filled in ___ at the Harrow Bakery in 1987.",
    ],
)
def test_a_doubtful_reading_gives_no_question(text: str) -> None:
    assert asked(text, anchor=ANCHOR) == {}


def test_what_stands_apart_from_a_condition_holds() -> None:
    text = "Ada Renk bought the boat in 1990; if it leaks, Tom Aldane will mend it."
    assert asked(text)["When did Ada Renk buy the boat?"] == "1990"
    assert not any("mend" in question for question in asked(text))


def test_a_pronoun_is_asked_about_only_with_its_document_named() -> None:
    text = "She sold the shop to Tom Aldane in 2004."
    assert asked(text) == {}
    placed = asked(text, anchor=ANCHOR)
    assert placed[f"When did she sell the shop to Tom Aldane, {ANCHOR}?"] == "2004"
    assert all(question.endswith(f", {ANCHOR}?") for question in placed)


def test_a_question_with_names_needs_no_document() -> None:
    text = "Mirela Voss opened the Harrow Bakery in 1987."
    assert asked(text, anchor=ANCHOR) == asked(text)


def test_every_core_names_the_document_where_one_does() -> None:
    for fact in facts_of(Statement("They stopped work on 1 July.", None, ANCHOR)):
        for core in (fact.direct, fact.indirect, fact.cloze, fact.keywords):
            assert '"The Ferry"' in core


def test_i_and_we_are_the_speaker_of_a_chat() -> None:
    sold = asked("I sold the old nets to Gideon Pash.", "Maud Okrent")
    assert sold["Who sold the old nets to Gideon Pash?"] == "Maud Okrent"
    assert sold["Who did Maud Okrent sell the old nets to?"] == "Gideon Pash"
    assert asked("I have a boat in Varnholm.", "Maud Okrent")[
        "Where does Maud Okrent have a boat?"
    ] == ("Varnholm")
    skipper = asked("I'm the skipper of the Blue Marten.", "Maud Okrent")
    assert skipper["Who is the skipper of the Blue Marten?"] == "Maud Okrent"
    brother = asked("My brother mends nets in Varnholm", "Maud Okrent")
    assert brother["What does Maud Okrent's brother mend in Varnholm?"] == "nets"
    ours = asked("We bought a boat in Varnholm.", "Maud Okrent")
    assert ours["What did Maud Okrent and the others buy in Varnholm?"] == "boat"
    assert asked("You sold eggs to Berta Lund in May.", "Maud Okrent", ANCHOR) == {}


def test_i_stays_i_in_a_journal() -> None:
    facts = asked("I sold the old nets to Gideon Pash.", None, "on 2 November 2041")
    assert facts["Who did I sell the old nets to, on 2 November 2041?"] == "Gideon Pash"


def test_an_apposition_says_who_someone_is() -> None:
    text = "Petra Lindqvar, the chair of the Tollen Harbour Trust, signed the contract."
    facts = asked(text)
    assert facts["Who is the chair of the Tollen Harbour Trust?"] == "Petra Lindqvar"
    assert facts["Who is Petra Lindqvar?"] == "chair of the Tollen Harbour Trust"
    assert facts["What did Petra Lindqvar sign?"] == "contract"


def test_a_list_is_no_apposition() -> None:
    assert "Who is Petra Lindqvar?" not in asked("Petra Lindqvar, the mayor and Ada Renk danced.")


@pytest.mark.parametrize(
    "text",
    [
        '"The ferry will run every day," said Petra Lindqvar.',
        "“The ferry will run every day!” said Petra Lindqvar, who smiled.",
    ],
)
def test_a_quotation_asks_who_said_it(text: str) -> None:
    (fact,) = facts_of(Statement(text))
    assert (fact.asks, fact.gold) == ("who", "Petra Lindqvar")
    assert fact.direct == 'Who said: "The ferry will run every day"?'
    assert fact.cloze == '"The ferry will run every day," said ___.'


def test_a_quotation_of_nobody_known_gives_no_question() -> None:
    assert asked('"We sold the Harrow Bakery in 1987," she said.', anchor=ANCHOR) == {}
    assert asked('"We sold the Harrow Bakery in 1987."', anchor=ANCHOR) == {}


def test_a_known_kind_decides_between_who_and_what() -> None:
    text = "Quell repaired the clock of Harrow."
    assert "Who repaired the clock of Harrow?" in asked(text, kinds={"Quell": "person"})
    assert "What repaired the clock of Harrow?" in asked(text, kinds={"Quell": "organization"})


def test_a_known_name_that_is_a_common_word_keeps_its_capital() -> None:
    kinds = {"Tam Orrin": "person", "Tam": "person", "Marrow": "person"}
    for name in kinds:
        facts = asked(f"{name} sold the clock in 1990.", anchor=ANCHOR, kinds=kinds)
        assert facts[f"When did {name} sell the clock?"] == "1990"
        assert facts[f"Who sold the clock in 1990, {ANCHOR}?"] == name


@pytest.mark.parametrize("when", ["Yesterday", "Last week", "That morning", "Today"])
def test_a_time_before_the_subject_is_no_part_of_the_name(when: str) -> None:
    facts = asked(f"{when} Berta Lund sold three hives.", anchor="on 3 May 2034")
    assert facts[f"Who sold three hives {when.lower()}, on 3 May 2034?"] == "Berta Lund"
    assert facts[f"How many hives did Berta Lund sell {when.lower()}, on 3 May 2034?"] == "three"


def test_a_time_behind_the_object_is_no_part_of_it() -> None:
    facts = asked("Berta Lund sold the honey last week.", anchor="on 3 May 2034")
    assert facts["What did Berta Lund sell last week, on 3 May 2034?"] == "honey"


def test_a_question_that_holds_its_own_answer_is_not_asked() -> None:
    assert "Harrow" not in asked("Harrow sold bread in Harrow in 1987.").values()
    assert asked("I sold my house in Varnholm.", "Ada Renk") == {
        "Where did Ada Renk sell Ada Renk's house?": "Varnholm",
        "What did Ada Renk sell in Varnholm?": "Ada Renk's house",
    }


def test_the_limit_bounds_the_facts_and_keeps_the_first() -> None:
    statement = Statement("Selma Dray had built the lighthouse at Sallow Point in 2029.")
    everything = facts_of(statement, limit=9)
    assert len(everything) == 4
    assert facts_of(statement, limit=2) == everything[:2]


# ---- whatever text comes in ---------------------------------------------------------------------


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


SUBJECTS = parts(
    """Mirela Voss|The Harrow Bakery|Saltwick|Mark|The mayor|She|I|My brother|They|It
    |Voss, the mayor,|Yesterday Tom Aldane|In 1987, Tom Aldane|The children of Harrow
    |Tom Aldane and Ada Renk|There|Tom said that Ada Renk|Two boats
    |The mayor of Harrow, Voss,|When she came, Mark"""
)
VERBS = parts(
    """opened|sold|is|was founded by|has had|will sail|put|keeps|has kept|moved to|lives in
    |gave Mark|'s mended|didn't open|told me about|can't sell|had been sold to|are"""
)
OBJECTS = parts(
    """the Harrow Bakery|Saltwick|a boat|the old nets|61 crows|40,000 crowns|$12|bread|it|me
    |my house|three boats and two nets|the niece of Ada Renk|that Mark left|1987
    |Saltwick, Harrow and Quell"""
)
PHRASES = parts(
    """in 1987|on 9 January|to Tom Aldane|in Saltwick|for seven years|last week|yesterday|every day
    |since May|at the old mill|with Ada Renk|for 300 marks|and left Harrow|but she stayed|, a baker,
    |because it rained|if it rains|who sold bread|to buy bread|at 5 p.m.|; Mark sold it in 1990"""
)
NOISE = [*parts("""___|_|#|"|”|(|'|’s|!|?|–|;|,|not|and|that|%|é|the|Dr.|of|with|May|1987"""), "\n"]


@st.composite
def statements(draw: st.DrawFn) -> str:
    """A sentence, with some luck; now and then a stray word or mark in it."""
    words = [*draw(st.sampled_from(SUBJECTS)).split(), *draw(st.sampled_from(VERBS)).split()]
    words += draw(st.sampled_from(OBJECTS)).split()
    for phrase in draw(st.lists(st.sampled_from(PHRASES), max_size=3)):
        words += phrase.split()
    for noise in draw(st.lists(st.sampled_from(NOISE), max_size=2)):
        words.insert(draw(st.integers(0, len(words))), noise)
    return " ".join(words) + draw(st.sampled_from([".", ".", ".", "!", "...", ""]))


SENTENCES = st.one_of(
    statements(),
    st.lists(st.sampled_from([*SUBJECTS, *VERBS, *PHRASES, *NOISE]), max_size=9).map(" ".join),
    st.text(max_size=120),
)
# What a contraction or an apposition is written out as.
ADDED = {"is", "are", "am", "has", "have", "had", "will", "would", "not", "can"}


def words_in(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.casefold().replace("’", "'")))


@given(
    SENTENCES,
    st.sampled_from([None, "Maud Okrent"]),
    st.sampled_from([None, ANCHOR, "on 3 May 2034"]),
    st.sampled_from([{}, {"Mark": "person", "Saltwick": "geo", "Voss": "person"}]),
)
@settings(max_examples=500, deadline=None)
def test_whatever_comes_in_the_facts_are_well_formed(
    text: str, speaker: str | None, anchor: str | None, kinds: dict[str, str]
) -> None:
    facts = facts_of(Statement(text, speaker, anchor), kinds)
    assert len(facts) <= 4
    for fact in facts:
        assert fact.gold.strip()
        assert fact.cloze.count(GAP) == 1
        assert not any(GAP in core for core in (fact.gold, fact.direct, fact.indirect))
        assert fact.direct.endswith("?")
        assert fact.direct.casefold().startswith(fact.asks.split()[0].casefold())
        gold = rf"(?<!\w){re.escape(fact.gold.casefold())}(?!\w)"
        assert re.search(gold, fact.direct.casefold()) is None
        if anchor is not None and anchor in fact.direct:
            assert fact.direct.endswith(f", {anchor}?")


@given(statements())
@settings(max_examples=400, deadline=None)
def test_the_filled_gap_says_nothing_that_the_sentence_does_not(text: str) -> None:
    for fact in facts_of(Statement(text)):
        assert words_in(fact.gold) <= words_in(text) | ADDED
        said, _, source = fact.cloze.partition(" (According to ")
        assert words_in(said.replace(GAP, fact.gold)) <= words_in(text) | ADDED
        assert words_in(source) <= words_in(text)


def test_the_made_up_sentences_do_give_facts() -> None:
    """The two properties above would hold of nothing, too."""
    found = 0

    @given(statements())
    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    def count(text: str) -> None:
        nonlocal found
        found += bool(facts_of(Statement(text, None, ANCHOR)))

    count()
    assert found >= 30
