"""The ways of asking.

A fact is asked through a *form*: a frame around one core of its question. Forms of role `shared`
are used in tuning, for held-out wordings (a form that tuning never used for that fact) and in the
embedded base model's pretraining on other worlds. Forms of role `new` ask the question set
`new_wording` only: neither tuning nor the base ever sees them.

The cores, named by `needs`, and the fields their patterns may use:

- direct: {direct} "What did Mirela Voss open in 1987?", {plain} "what did Mirela Voss open in 1987"
- indirect: {indirect} "what Mirela Voss opened in 1987"
- cloze: {cloze} "Mirela Voss opened ___ in 1987."
- keywords: {keywords} "Mirela Voss, open, 1987"
- entity: {topic}, {who} ("who" or "what"), {Who}
- pair: {a}, {b}
- theme: {topic}, a subject that several documents share
- memory: nothing; the memory as a whole
- source: {source}, a document or a part of one
- source_topic: {source}, {topic}
- speaker_topic: {speaker}, {topic}
- date: {date}
"""

from __future__ import annotations

import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from ragtuned_pipeline.ids import seeded_int

Style = Literal["short", "long"]
Role = Literal["shared", "new"]

FACT_NEEDS = ("direct", "indirect", "cloze", "keywords")
PASSAGE_NEEDS = ("source", "source_topic", "speaker_topic", "date")


@dataclass(frozen=True)
class Form:
    """One way of asking; `style` says whether it asks for the short answer or the long one."""

    name: str
    pattern: str
    needs: str
    style: Style
    role: Role

    def ask(self, fields: Mapping[str, str]) -> str:
        """Return the question. Raises KeyError when a field of the pattern is missing."""
        return self.pattern.format_map(fields)


def fact_fields(direct: str, indirect: str, cloze: str, keywords: str) -> dict[str, str]:
    """Return the fields that the patterns of the four fact cores use."""
    plain = direct.rstrip("?")
    return {
        "direct": direct,
        "plain": plain[:1].lower() + plain[1:],
        "indirect": indirect,
        "cloze": cloze,
        "keywords": keywords,
    }


def entity_fields(topic: str, is_person: bool) -> dict[str, str]:
    """Return the fields of the entity forms."""
    who = "who" if is_person else "what"
    return {"topic": topic, "who": who, "Who": who.capitalize()}


@cache
def _frame(form: Form) -> tuple[str, ...]:
    return frame_words(form)


def frame_words(form: Form) -> tuple[str, ...]:
    """Return the words of the form that are not the question's core, in lower case."""
    literal = " ".join(text for text, *_ in string.Formatter().parse(form.pattern))
    return tuple("".join(c if c.isalnum() else " " for c in literal.lower()).split())


@cache
def forms_for(needs: str, role: Role, style: Style | None = None) -> tuple[Form, ...]:
    """Return the forms around one core, in the order of this file."""
    return tuple(
        form
        for form in FORMS
        if form.needs == needs and form.role == role and style in (None, form.style)
    )


def choose(
    seed: int, key: str, needs: Collection[str], train: int, held_out: int
) -> tuple[list[Form], list[Form]]:
    """Return the shared forms that tuning uses for the fact `key`, and those held out for it.

    The draw depends on `seed` and `key` only. Held-out forms share a style and a core with some
    training form of the same fact where the pool allows: the fact is taught, the wording is not.
    """
    pool = [form for needed in sorted(needs) for form in forms_for(needed, "shared")]
    order = _distinct(_shuffled(pool, seed, key))
    held = order[:held_out]
    # One training form of each core and style first, so that no held-out one stands alone.
    seen: set[tuple[str, str]] = set()
    first: list[Form] = []
    rest: list[Form] = []
    for form in order[held_out:]:
        group = (form.needs, form.style)
        (rest if group in seen else first).append(form)
        seen.add(group)
    return [*first, *rest][:train], held


def choose_new(seed: int, key: str, needs: Collection[str], count: int) -> list[Form]:
    """Return `count` forms of role `new` for the fact `key`; the draw depends on both only."""
    pool = [form for needed in sorted(needs) for form in forms_for(needed, "new")]
    return _shuffled(pool, seed, key)[:count]


def _distinct(forms: Sequence[Form]) -> list[Form]:
    """Keep one of the forms that differ in capitals and punctuation only: "{direct}", "{plain}"."""
    return list({(f.needs, _frame(f)): f for f in reversed(forms)}.values())[::-1]


def _shuffled(pool: Sequence[Form], seed: int, key: str) -> list[Form]:
    """One hash a key, not one a form: a linear congruential step orders the pool."""
    state = seeded_int(seed, key)
    order = list(pool)
    for last in range(len(order) - 1, 0, -1):
        # Knuth's MMIX multiplier and increment (TAOCP 2, 3.3.4); the high bits are the good ones.
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        other = (state >> 33) % (last + 1)
        order[last], order[other] = order[other], order[last]
    return order


def _forms(role: Role, needs: str, style: Style, *patterns: str) -> list[Form]:
    """Names number the patterns in their group: append, never insert."""
    mark = "new-" if role == "new" else ""
    return [
        Form(f"{mark}{needs}-{style}-{number:02d}", pattern, needs, style, role)
        for number, pattern in enumerate(patterns, start=1)
    ]


FORMS: tuple[Form, ...] = (
    # ---- facts, shared ----
    *_forms(
        "shared",
        "direct",
        "short",
        "{direct}",
        "{plain}",
        "{direct} Keep it short.",
        "Quick question: {direct}",
        "I have a question. {direct}",
        "Answer in a few words: {direct}",
        "{direct} Just the answer, please.",
        "Please answer this. {direct}",
        "So, {plain}?",
        "Going by what you remember, {plain}?",
        "From memory: {direct}",
        "Question: {direct} Answer:",
        "hey, {plain}",
        "One thing I would like to know: {direct}",
        "{direct} A short reply will do.",
        "Here is what I was asked today: {direct}",
        "Somebody wants to know this. {direct}",
        "Q: {direct}",
        "{direct} Thank you.",
        "Help me out here: {direct}",
    ),
    *_forms(
        "shared",
        "direct",
        "long",
        "{direct} Answer in a full sentence.",
        "In a complete sentence, {plain}?",
        "{direct} Give me the details.",
        "{direct} Tell me the whole story.",
        "Please explain: {direct}",
        "{direct} Write out your answer in full.",
    ),
    *_forms(
        "shared",
        "indirect",
        "short",
        "Tell me {indirect}.",
        "Do you know {indirect}?",
        "Can you tell me {indirect}?",
        "I would like to know {indirect}.",
        "Could you remind me {indirect}?",
        "Say briefly {indirect}.",
        "tell me {indirect}",
        "I forgot {indirect}.",
        "Please name {indirect}.",
        "I wonder {indirect}.",
        "I want to know {indirect}, nothing more.",
        "Any idea {indirect}?",
        "State {indirect}.",
        "do you remember {indirect}",
        "My question is {indirect}.",
        "Would you mind telling me {indirect}?",
    ),
    *_forms(
        "shared",
        "indirect",
        "long",
        "Describe in one sentence {indirect}.",
        "Explain {indirect}.",
        "Tell me in full {indirect}.",
        "Can you explain {indirect}?",
        "Please write a sentence that says {indirect}.",
    ),
    *_forms(
        "shared",
        "cloze",
        "short",
        "Fill in: {cloze}",
        "Fill in the blank: {cloze}",
        "Complete this: {cloze}",
        "{cloze} Fill the gap.",
        "What goes in the blank? {cloze}",
        "{cloze}",
        "Find the missing words. {cloze}",
        "Complete the statement with a few words: {cloze}",
        "{cloze} What belongs in the blank?",
    ),
    *_forms(
        "shared",
        "cloze",
        "long",
        "Write this sentence out in full: {cloze}",
        "Copy and complete: {cloze}",
        "Give the whole sentence: {cloze}",
    ),
    *_forms(
        "shared",
        "keywords",
        "short",
        "{keywords}?",
        "{keywords} ...",
        "Answer briefly, from these key words: {keywords}",
        "keywords: {keywords}",
        "Search: {keywords}",
        "Short answer wanted. {keywords}",
    ),
    *_forms(
        "shared",
        "keywords",
        "long",
        "What do you know about this: {keywords}",
        "Make a sentence from memory: {keywords}",
        "{keywords} - tell me more.",
        "Notes: {keywords}. Say it in a sentence.",
    ),
    # ---- facts, new ----
    *_forms(
        "new",
        "direct",
        "short",
        "Suppose a stranger walked up and said: {direct} How would you reply?",
        "My friend bets you have no clue about it, but {plain}?",
        "{direct} (Trivia round, ten points.)",
        "For the record, once more, and without guessing: {plain}?",
    ),
    *_forms(
        "new",
        "direct",
        "long",
        "{direct} Use everything you have learned on this point.",
    ),
    *_forms(
        "new",
        "indirect",
        "short",
        "I cannot recall {indirect}, can you?",
        "It slipped my mind {indirect}; enlighten me.",
        "We were just arguing over {indirect}. Settle it.",
        "{indirect}: that's all I'm after.",
    ),
    *_forms(
        "new",
        "indirect",
        "long",
        "Pretend I'm new here and let me in on {indirect}.",
    ),
    *_forms(
        "new",
        "cloze",
        "short",
        "{cloze} - which words belong in the gap?",
        'An old note is smudged: "{cloze}" How should it read at the smudge?',
        "Replace the underscores correctly. {cloze}",
    ),
    *_forms(
        "new",
        "cloze",
        "long",
        'Restore the damaged line "{cloze}" to its original state.',
    ),
    *_forms(
        "new",
        "keywords",
        "short",
        "{keywords}: what is missing here?",
        "These clues point to one thing, namely? {keywords}",
    ),
    *_forms(
        "new",
        "keywords",
        "long",
        "Connect the dots between {keywords}.",
    ),
    # ---- entities ----
    *_forms(
        "shared",
        "entity",
        "short",
        "{Who} is {topic}?",
        "{topic}: {who} is that?",
        "In one sentence, {who} is {topic}?",
        "{who} is {topic}",
        "Can you tell me {who} {topic} is?",
        "Briefly introduce {topic}.",
        "Do you know {who} {topic} is?",
        "Remind me {who} {topic} is.",
        "Identify {topic}.",
        "I came across the name {topic}. {Who} is that?",
    ),
    *_forms(
        "shared",
        "entity",
        "long",
        "Tell me about {topic}.",
        "What do you know about {topic}?",
        "Tell me everything you know about {topic}.",
        "Describe {topic}.",
        "Give me an overview of {topic}.",
        "tell me about {topic}",
        "What can you say about {topic}?",
        "Write a short portrait of {topic}.",
        "Summarise what you remember about {topic}.",
        "I would like to learn more about {topic}.",
        "Please give me some background on {topic}.",
        "What is known about {topic}?",
        "What should I know about {topic}?",
        "everything about {topic}",
        "Could you describe {topic} in detail?",
        "{topic} - what do you remember?",
    ),
    *_forms(
        "new",
        "entity",
        "short",
        "People keep mentioning {topic} and I have no idea why. Help?",
        "{topic} rings a bell. Which one?",
    ),
    *_forms(
        "new",
        "entity",
        "long",
        "Walk me through all there is on {topic}.",
        "If {topic} had an encyclopedia page, how would it go?",
        "Brief me on {topic} before my meeting.",
        "Share your notes concerning {topic}, leaving nothing out.",
    ),
    # ---- relationships ----
    *_forms(
        "shared",
        "pair",
        "short",
        "How is {a} related to {b}?",
        "What is {a} to {b}?",
        "In one sentence, how are {a} and {b} connected?",
        "how is {a} connected to {b}",
        "Briefly, what links {a} to {b}?",
        "Say in one sentence what {a} has to do with {b}.",
        "What connects {a} and {b}?",
        "{a} and {b}: what is the link?",
        "Do you know how {a} is linked to {b}?",
        "State the connection between {a} and {b}.",
    ),
    *_forms(
        "shared",
        "pair",
        "long",
        "What is the relationship between {a} and {b}?",
        "Describe the relationship between {a} and {b}.",
        "What do you know about {a} and {b}?",
        "Explain how {a} and {b} are related.",
        "What does {a} have to do with {b}?",
        "Tell me about {a} and {b}.",
        "tell me how {a} and {b} are connected",
        "How do {a} and {b} know of each other?",
        "What happened between {a} and {b}?",
        "Give me the details on {a} and {b}.",
        "Can you explain the connection between {a} and {b}?",
        "I want to understand how {a} relates to {b}.",
        "What role does {a} play for {b}?",
        "Summarise what ties {a} to {b}.",
    ),
    *_forms(
        "new",
        "pair",
        "short",
        "Name whatever joins {a} with {b}.",
        "Why would someone mention {a} in the same breath as {b}?",
    ),
    *_forms(
        "new",
        "pair",
        "long",
        "{a} on one side, {b} on the other: fill me in on their dealings.",
        "Draw a line from {a} towards {b} and narrate what lies along it.",
        "Where do the paths of {a} and {b} cross?",
        "Going from {a}, how does one arrive at {b}?",
    ),
    # ---- communities ----
    *_forms(
        "shared",
        "theme",
        "short",
        "In short, what is the story around {topic}?",
        "Sum up {topic} in a sentence or two.",
        "What is the main point about {topic}?",
        "briefly, what is going on with {topic}",
        "What do {topic} have in common?",
    ),
    *_forms(
        "shared",
        "theme",
        "long",
        "What is the story around {topic}?",
        "Summarise what happened around {topic}.",
        "What are the main themes around {topic}?",
        "Give me the big picture of {topic}.",
        "Explain the group of things around {topic}.",
        "What are the most important findings about {topic}?",
        "Who and what is involved around {topic}?",
        "Describe how everything around {topic} fits together.",
        "Write a report about {topic}.",
        "How do the pieces around {topic} fit together?",
        "What should I understand about the circle of {topic}?",
        "tell me about the circle of {topic}",
        "What stands out about {topic} as a whole?",
    ),
    *_forms(
        "new",
        "theme",
        "short",
        "Boil {topic} down to its essence.",
    ),
    *_forms(
        "new",
        "theme",
        "long",
        "Take a step back: which larger pattern emerges with {topic}?",
        "An editor requests a digest covering {topic}. Deliver it.",
        "Zoom out from {topic} and paint the scene.",
    ),
    *_forms(
        "shared",
        "memory",
        "long",
        "What are the main themes of this memory?",
        "What is this memory about?",
        "Summarise everything you remember.",
        "Give me an overview of all that you know.",
        "What are the most important things in your memory?",
        "Which people and places matter most in all of this?",
        "What is the big picture?",
        "Describe the whole collection in one answer.",
        "what do you know about overall",
        "What are the documents about, taken together?",
        "Tell me the main points of everything you have read.",
        "Which topics come up most?",
    ),
    *_forms(
        "new",
        "memory",
        "long",
        "If your entire knowledge had a table of contents, what would be on it?",
        "Condense the complete archive for a newcomer.",
    ),
    # ---- passages ----
    *_forms(
        "shared",
        "source",
        "long",
        "What does {source} report?",
        "What is in {source}?",
        "Retell {source}.",
        "What does {source} say?",
        "Tell me what {source} contains.",
        "what happens in {source}",
        "Repeat {source} from memory.",
        "Give me the content of {source}.",
        "Can you recount {source}?",
        "I missed {source}. What was in it?",
        "Write down {source} as you remember it.",
        "Go through {source} for me.",
    ),
    *_forms(
        "shared",
        "source_topic",
        "long",
        "What does {source} say about {topic}?",
        "What did we learn about {topic} in {source}?",
        "Tell me what {source} says about {topic}.",
        "{topic}: what does {source} say?",
        "In {source}, what is said about {topic}?",
        "How does {topic} come up in {source}?",
    ),
    *_forms(
        "shared",
        "speaker_topic",
        "long",
        "What did {speaker} say about {topic}?",
        "Tell me what {speaker} said about {topic}.",
        "How did {speaker} talk about {topic}?",
        "what did {speaker} tell us about {topic}",
    ),
    *_forms(
        "shared",
        "date",
        "long",
        "What happened on {date}?",
        "Tell me about {date}.",
        "What do you remember of {date}?",
        "what was going on on {date}",
    ),
    *_forms(
        "new",
        "source",
        "long",
        "Read {source} aloud to me.",
        "Reconstruct {source}, since my copy is gone.",
    ),
    *_forms(
        "new",
        "source_topic",
        "long",
        "Quote whichever lines of {source} deal with {topic}.",
    ),
    *_forms(
        "new",
        "speaker_topic",
        "long",
        "{speaker} brought up {topic}; give me the gist.",
    ),
    *_forms(
        "new",
        "date",
        "long",
        "Open the calendar at {date} and report events.",
    ),
)
