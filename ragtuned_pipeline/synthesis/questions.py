"""Questions, with their answers, from one declarative sentence, offline.

Every answerable phrase of the main clause becomes a gap: the clause without it gives the cloze, a
question word before the inverted clause the direct question. The way is that of Heilman and Smith
(2010, "Good Question!"), on a shallow reading instead of a parse tree. A doubtful reading gives no
question: a wrong one would teach a falsehood.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ragtuned_pipeline.synthesis.clauses import (
    BE,
    DAYS,
    DEICTIC,
    DO,
    MONTHS,
    PRONOUNS,
    Clause,
    Phrase,
    Reader,
    Token,
    base_form,
    is_time,
    lexicon_tag,
    read_clauses,
    third_person,
    tokenise,
    word_set,
    words,
)

GAP = "___"


@dataclass(frozen=True)
class Statement:
    """One sentence with what its questions need to stand alone.

    Attributes:
        text: the sentence.
        speaker: who says it in a chat: "I" is that person; None where "I" stays "I".
        anchor: where it is said, appended to questions that would not stand alone, for example
            'according to "The Keel Goes Down"' or "on 3 May 2034"; None where nothing is known.
    """

    text: str
    speaker: str | None = None
    anchor: str | None = None


@dataclass(frozen=True)
class SentenceFact:
    """One thing that a sentence answers, and the four cores of its question (see forms)."""

    asks: str  # "who" | "what" | "when" | "where" | "how many" | "how much" | "how long" | ...
    gold: str
    direct: str
    indirect: str
    cloze: str
    keywords: str
    names: tuple[str, ...]  # proper names in the question, not in the gold


_PLACE = word_set(
    """
    in at on near under behind inside above below beside outside along across
    """
)
_NOT_PLACE = word_set(
    """
    end case way fact time beginning middle moment trouble particular general order love charge
    meantime part place need danger use view front word words name names turn rest share side
    average board duty foot purpose hand hands sale fire loan strike account basis condition job
    work risk war peace public private doubt secret style form mind cash debt detail
    """
)
_MOTION = word_set(
    """
    go move come travel walk drive sail return run fly ride cycle get head
    """
)
# Verbs after which "in the drawer" says where, and not what the verb is about.
_SETTLED = word_set(
    "live work stand sit sleep stay lie hang meet wait park find leave keep hold build open die "
    "stop land eat spend wake grow play perform study teach happen take begin end start bury hide"
)
_AT_PERSON = word_set("look laugh smile shout stare aim point glance swear")
_HUMAN = word_set(
    """
    say tell think know write buy marry teach want ask love hate work live sing paint cook lend
    hire founded build believe remember own study learn visit retire die grow bake
    """
)
_TITLES = word_set(
    """
    mr. mrs. ms. dr. prof. capt. sgt. rev. mr mrs ms dr aunt uncle sir lady captain doctor
    professor inspector sergeant father sister brother judge minister mayor president
    """
)
# Words that end the name of a thing, a place or a body of people, not of a person.
_THING_HEADS = word_set(
    """
    academy agency airport alley archive arena association avenue bakery bank bay beach board
    bridge brothers bureau cafe canal castle cathedral cemetery centre center chapel choir
    church cinema city clinic club coast college committee community company congress
    cooperative corp corporation council county court creek department dock docks engine express
    factory fair falls farm ferry festival fields forest fort foundation fund gallery garden
    gardens garage gazette group guild hall harbour harbor hill hills hospital hotel house inc
    inn institute island islands journal kitchen laboratory lake lane library lighthouse line
    lines ltd lodge market meadow memorial mill mine ministry monastery mountain mountains
    museum news observatory office orchestra palace park pass path pier plant point police pool
    port post prize project pub quarry quay railway ranch reserve reservoir restaurant review
    ridge river road room school sea service shipyard shop society sound square stadium station
    store strait street studio studios team terminal theatre theater times tower town trust
    tunnel union university valley village ward water way wharf wood woods works workshop yard
    zoo
    """
)
_HUMAN_OBJECT = word_set(
    """
    meet marry hire teach ask tell thank visit call invite help phone see know love hug kiss
    appoint elect name beat join follow interview introduce arrest blame
    """
)
_MONEY = word_set(
    """
    crowns crown dollars euros pounds francs pence cents
    """
)


def facts_of(
    statement: Statement, kinds: Mapping[str, str] | None = None, limit: int = 4
) -> list[SentenceFact]:
    """Return what `statement` answers, the most telling first, at most `limit`.

    Args:
        kinds: entity titles and aliases to GraphRAG types ("person", "organization", "geo", ...),
            for the choice between "who" and "what"; unknown names are guessed by their words.
    """
    text = " ".join(statement.text.split())
    if not 12 <= len(text) <= 500 or text.endswith(("?", ":")) or GAP in text:
        return []
    if statement.speaker is None and not text.endswith((".", "!", '"', "”", ")")):
        return []  # a heading
    kinds = kinds or {}
    quoted = _quotation_facts(text)
    if quoted:
        return quoted
    if text[0] in '"“':
        if re.search(r"(?i)\b(?:i|we|my|our|me|us|you)\b", text):
            return []  # said by someone this sentence does not name
        text = text.strip('"“”')
    tokens = _resolve_speaker(_with_known_name(tokenise(text), kinds), statement.speaker)
    made: list[SentenceFact] = []
    for clause in read_clauses(tokens):
        for fact in _clause_facts(clause, kinds):
            anchored = _anchored(fact, clause, statement)
            if anchored is not None:
                made.append(anchored)
    made += _apposition_facts(tokens, kinds)
    return [fact for fact in made if not gives_away(fact.direct, fact.gold)][:limit]


def gives_away(question: str, gold: str) -> bool:
    """Say whether the question holds its own answer."""
    if gold.casefold() not in question.casefold():
        return False
    return re.search(rf"(?i)(?<!\w){re.escape(gold)}(?!\w)", question) is not None


def _with_known_name(tokens: list[Token], kinds: Mapping[str, str]) -> list[Token]:
    """ "Mark Orrin", "Rose": a known name that a sentence starts with is no common noun."""
    for end in range(min(5, len(tokens)), 0, -1):
        if words(tuple(tokens[:end])) in kinds:
            name = [replace(t, tag="NNP") if t.text[:1].isupper() else t for t in tokens[:end]]
            return [*name, *tokens[end:]]
    return tokens


# ---- speakers -----------------------------------------------------------------------------------


def _resolve_speaker(tokens: list[Token], speaker: str | None) -> list[Token]:
    """Write the speaker for "I", "my", "me", "we"."""
    if speaker is None:
        return tokens
    out: list[Token] = []
    for token in tokens:
        low = token.low
        if low == "i" or (low == "me"):
            out.append(replace(token, text=speaker, tag="NNP"))
        elif low in ("my", "our"):
            out.append(replace(token, text=speaker + "'s", tag="PRP$"))
        elif low in ("we", "us"):
            out.append(replace(token, text=f"{speaker} and the others", tag="PRP"))
        elif out and out[-1].text == speaker and low in ("am", "have", "'m"):
            out.append(replace(token, text={"am": "is", "have": "has"}[low], tag="VBZ"))
        elif (
            out and out[-1].text == speaker and token.tag in ("VBP", "VB") and low not in (*BE, *DO)
        ):
            out.append(replace(token, text=third_person(low), tag="VBZ"))
        else:
            out.append(token)
    return out


# ---- quotations and appositions ------------------------------------------------------------------

_QUOTED = re.compile(
    r'^["“]([^"“”]{12,160})[,.!]["”],? (said|says|wrote|writes|explained|added) '
    r"((?:[A-Z][\w'’-]+ ?){1,4})(?=[,.]|$)"
)


def _quotation_facts(text: str) -> list[SentenceFact]:
    found = _QUOTED.match(text)
    if found is None:
        return []
    quote, verb, name = found.group(1), found.group(2), found.group(3).strip()
    if name.lower() in PRONOUNS:
        return []
    return [
        SentenceFact(
            asks="who",
            gold=name,
            direct=f'Who {verb}: "{quote}"?',
            indirect=f'who {verb}: "{quote}"',
            cloze=f'"{quote}," {verb} {GAP}.',
            keywords=f'"{quote}", {verb}',
            names=(),
        )
    ]


def _apposition_facts(tokens: list[Token], kinds: Mapping[str, str]) -> list[SentenceFact]:
    """ "Mirela Voss, the mayor of Harrow, ..." answers "Who is the mayor of Harrow?"."""
    reader = Reader(tokens)
    facts: list[SentenceFact] = []
    for at, token in enumerate(tokens):
        if token.tag != "," or at == 0 or tokens[at - 1].tag != "NNP":
            continue
        begin = at
        while begin and tokens[begin - 1].tag == "NNP":
            begin -= 1
        end = reader.noun_phrase(at + 1)
        role = reader.part(at + 1, end)
        if (
            len(role) < 2
            or role[0].low not in ("the", "a", "an")
            or reader.tag(end) not in (",", ".")
        ):
            continue
        if begin and tokens[begin - 1].tag in (",", "CC", "POS", "DT"):
            continue  # part of a list
        follows = reader.low(end + 1)
        if reader.tag(end) == "," and (follows == "and" or reader.tag(end + 1) in ("DT", "NNP")):
            continue  # a list again
        name = reader.part(begin, at)
        if is_time(name) or is_time(role) or any(t.low in PRONOUNS for t in role):
            continue
        who = _who(name, kinds, "")
        role_text, name_text = words(role), words(name)
        if role[0].low == "the" and len(role) > 2:
            facts.append(
                SentenceFact(
                    asks=who,
                    gold=name_text,
                    direct=f"{who.capitalize()} is {role_text}?",
                    indirect=f"{who} {role_text} is",
                    cloze=f"{GAP} is {role_text}.",
                    keywords=_keywords([role]),
                    names=_names([role]),
                )
            )
        facts.append(
            SentenceFact(
                asks=who,
                gold=words(role[1:]),
                direct=f"{who.capitalize()} is {name_text}?",
                indirect=f"{who} {name_text} is",
                cloze=f"{name_text} is {GAP}.",
                keywords=f"{name_text}, {who}",
                names=(name_text,),
            )
        )
    return facts


# ---- the main clause ----------------------------------------------------------------------------


def _clause_facts(clause: Clause, kinds: Mapping[str, str]) -> list[SentenceFact]:
    if clause.subject[0].tag == "EX" or (clause.verb.main is None and not clause.verb.copula):
        return []
    if _is_vague(clause.subject):
        return []
    rest = _without_pronoun_object(clause.rest)
    fronted = tuple(replace(p, tokens=_lower_first(p.tokens)) for p in clause.fronted)
    clause = replace(clause, rest=rest, fronted=fronted)
    facts: list[tuple[int, SentenceFact]] = []
    phrases = [*clause.rest, *clause.fronted]
    for number, phrase in enumerate(phrases):
        ask = _ask(phrase, clause, number, kinds)
        if ask is None:
            continue
        wh, gold, kept, rank = ask
        asked = list(phrases)
        if kept:
            asked[number] = Phrase("ADV", kept)
        else:
            del asked[number]
        gapped = list(phrases)
        gap = Token(GAP, "NN", 0, 0, True)
        before = _before_gap(phrase, gold)
        after = phrase.tokens[len(before) + gold_length(phrase, gold) :]
        gapped[number] = Phrase("NP", (*before, gap, *after))
        facts.append((rank, _fact(wh, gold, clause, asked, gapped)))
    subject = _subject_fact(clause, kinds)
    if subject is not None:
        facts.append(subject)
    facts.sort(key=lambda ranked: ranked[0])
    return [fact for _, fact in facts]


# Verbs whose past looks like their base form.
_UNCHANGED = word_set(
    "put read let beat cut set hit shut cost hurt spread split burst cast bet shed quit"
)


def _is_plural(subject: tuple[Token, ...]) -> bool:
    return (
        subject[-1].tag in ("NNS", "NNPS", "CD")
        or any(t.low == "and" or t.text.endswith(" and the others") for t in subject)
        or subject[0].low in ("i", "we", "you", "they", "these", "those")
        or any(t.tag == "NNS" for t in subject)
    )


def _agrees(clause: Clause) -> bool:
    """Say whether subject and verb agree in number: where they do not, something was misread."""
    first = clause.verb.aux or clause.verb.main
    if first is None or first.low in _UNCHANGED or first.tag not in ("VB", "VBP", "VBZ"):
        return True
    if first.tag == "VBZ":
        return _may_be_singular(clause.subject)
    return _is_plural(clause.subject)


def _may_be_singular(subject: tuple[Token, ...]) -> bool:
    return not (subject[0].low in ("we", "they", "you") or subject[-1].tag in ("NNS", "NNPS"))


_VAGUE = ("it", "this", "that", "these", "those", "there", "one", "everyone")


def _is_vague(tokens: tuple[Token, ...]) -> bool:
    return len(tokens) == 1 and tokens[0].low in _VAGUE


def _without_pronoun_object(rest: tuple[Phrase, ...]) -> tuple[Phrase, ...]:
    """ "sells us sixty trunks": the pronoun adds nothing to the question."""
    if len(rest) > 1 and rest[1].kind == "NP" and rest[0].kind == "NP":
        only = rest[0].tokens
        if len(only) == 1 and only[0].tag == "PRP" and not is_time(rest[1].tokens):
            return rest[1:]
    return rest


def gold_length(phrase: Phrase, gold: str) -> int:
    """Return how many tokens of the phrase the gold answer takes, from its first one."""
    for start in range(len(phrase.tokens)):
        for end in range(len(phrase.tokens), start, -1):
            if words(phrase.tokens[start:end]) == gold:
                return end - start
    return len(phrase.inner)


def _before_gap(phrase: Phrase, gold: str) -> tuple[Token, ...]:
    for start in range(len(phrase.tokens)):
        if any(
            words(phrase.tokens[start:end]) == gold
            for end in range(start + 1, len(phrase.tokens) + 1)
        ):
            return phrase.tokens[:start]
    return phrase.tokens[: phrase.prep]


def _ask(
    phrase: Phrase, clause: Clause, number: int, kinds: Mapping[str, str]
) -> tuple[str, str, tuple[Token, ...], int] | None:
    """Return the question word, the gold answer, the tokens that stay, and a rank.

    None where the phrase is not asked for.
    """
    inner = phrase.inner
    if phrase.kind not in ("NP", "PP") or any(t.low in PRONOUNS for t in inner[:1]):
        return None
    gold = words(_stripped(inner))
    if not gold or len(inner) > 12:
        return None
    time = is_time(inner)
    named = any(t.tag == "NNP" for t in inner)
    counted = any(t.tag == "CD" for t in inner)
    if phrase.kind == "NP":
        return _ask_noun_phrase(inner, gold, clause, number, kinds, time, named)
    prep = words(phrase.tokens[: phrase.prep]).lower()
    if time:
        if any(t.low in DEICTIC for t in inner):
            return None
        if prep in ("in", "on", "at", "during") and _dated(inner):
            return "when", gold, (), 1
        if prep in ("since", "until", "till"):
            return f"{prep} when", gold, (), 2
        if prep == "for" and inner[-1].low.endswith("s"):
            return "how long", gold, (), 2
        return None
    main = base_form(clause.verb.main.text) if clause.verb.main else "be"
    settled = clause.verb.copula or main in _SETTLED or clause.verb.passive
    if prep in _PLACE and inner[-1].low not in _NOT_PLACE and kinds.get(gold) != "person":
        if inner[-1].tag == "NNP" and (prep in ("in", "at", "near") or settled):
            return ("where", gold, (), 2) if main not in _AT_PERSON or prep != "at" else None
        if inner[0].tag in ("DT", "PRP$") and settled and not _abstract(inner[-1]):
            return "where", words(phrase.tokens), (), 4
        return None
    if prep == "to" and main in _MOTION and (named or inner[0].tag == "DT"):
        return "where", gold, (), 2
    if prep in ("with", "by", "to", "from", "for", "about", "after", "of", "into"):
        if number and not (named and prep in ("with", "by", "to", "from")):
            return None  # after an object it may belong to the object
        if not named and not counted and not (inner[0].tag == "DT" and len(inner) > 1):
            return None
        if main in (*_MOTION, "leave") and prep in ("from", "for") and named:
            return "where", gold, phrase.tokens[: phrase.prep], 3
        return _who(inner, kinds, ""), gold, phrase.tokens[: phrase.prep], 2 if named else 5
    return None


def _ask_noun_phrase(
    inner: tuple[Token, ...],
    gold: str,
    clause: Clause,
    number: int,
    kinds: Mapping[str, str],
    time: bool,
    named: bool,
) -> tuple[str, str, tuple[Token, ...], int] | None:
    if time:
        if any(t.low in DEICTIC for t in inner) or not _dated(inner):
            return None
        return "when", gold, (), 1
    if number > 1 or (number == 1 and clause.rest[0].kind not in ("VP", "ADV", "NP")):
        return None
    following = clause.rest[1] if number == 0 and len(clause.rest) > 1 else None
    if following is not None and following.kind == "NP" and not is_time(following.tokens):
        return None  # the person to whom, in front of the object
    if inner[0].tag == "CD" and len(inner) > 1 and inner[1].tag in ("NNS", "JJ", "NNP", "NN"):
        counted = words(inner[1:])
        if inner[0].text[0] in "$£€":
            return "how much", inner[0].text, inner[1:], 1
        if any(t.tag == "CD" for t in inner[1:]):
            return "what", gold, (), 3  # "61 passengers and two goats"
        if inner[-1].tag == "NNS" or inner[-1].low in _MONEY:
            return f"how many {counted}", inner[0].text, (), 1
        return "what", gold, (), 3
    if inner[0].tag == "CD":
        return ("how much" if inner[0].text[0] in "$£€" else "what"), gold, (), 2
    if clause.verb.copula and not named and inner[0].tag not in ("DT", "PRP$"):
        return None
    if clause.verb.copula:
        is_name = all(t.tag == "NNP" for t in _stripped(inner))
        return _who(inner if is_name else clause.subject, kinds, "be"), gold, (), 3
    main = base_form(clause.verb.main.text) if clause.verb.main else ""
    role = main if main in _HUMAN_OBJECT else "object"
    return _who(inner, kinds, role) if named else "what", gold, (), 2 if named else 3


def _stripped(inner: tuple[Token, ...]) -> tuple[Token, ...]:
    return inner[1:] if inner[0].low in ("a", "an", "the") and len(inner) > 1 else inner


def _dated(tokens: tuple[Token, ...]) -> bool:
    return any(t.low in MONTHS | DAYS or t.tag == "CD" for t in tokens)


def _abstract(noun: Token) -> bool:
    return noun.low.endswith(("ness", "ity", "tion", "sion", "ment", "ance", "ence", "ing", "ship"))


def _fact(
    wh: str, gold: str, clause: Clause, asked: list[Phrase], gapped: list[Phrase]
) -> SentenceFact:
    verb, subject = clause.verb, _lower_first(clause.subject)
    ask_words = [words(p.tokens) for p in asked]
    adverbs = words(verb.adverbs)
    chain = words(verb.chain)
    if verb.aux is not None:
        inverted = [verb.aux.text.lower(), words(subject), adverbs, chain]
        straight = [words(subject), verb.aux.text.lower(), adverbs, chain]
    else:
        assert verb.main is not None
        present = {"VBZ": "does", "VBP": "do", "VB": "do"}.get(verb.main.tag, "did")
        helper = "did" if verb.main.low in _UNCHANGED else present
        inverted = [helper, words(subject), adverbs, base_form(verb.main.text)]
        straight = [words(subject), adverbs, chain]
    phrases = gapped[: len(clause.rest)]
    fronted = gapped[len(clause.rest) :]
    cloze = " ".join(filter(None, (*straight, *(words(p.tokens) for p in (*phrases, *fronted)))))
    return SentenceFact(
        asks=wh,
        gold=gold,
        direct=_join([wh.capitalize(), *inverted, *ask_words]) + "?",
        indirect=_join([wh, *straight, *ask_words]),
        cloze=cloze[:1].upper() + cloze[1:] + ".",
        keywords=_keywords([clause.subject, verb.chain or verb.tokens, *(p.tokens for p in asked)]),
        names=_names([clause.subject, *(p.tokens for p in asked)]),
    )


def _subject_fact(clause: Clause, kinds: Mapping[str, str]) -> tuple[int, SentenceFact] | None:
    subject, verb = clause.subject, clause.verb
    if subject[0].tag in ("PRP", "DT", "PRP$", "EX") and not any(t.tag == "NNP" for t in subject):
        return None
    if subject[0].tag == "CD" and not any(t.tag == "NNP" for t in subject):
        return None
    if not clause.rest or len(subject) > 10 or subject[0].tag == "PRP":
        return None
    if verb.copula and clause.rest[0].kind != "PP" and clause.rest[0].tokens[0].low != "the":
        return None
    informative = [t for p in clause.rest for t in p.tokens if t.tag in ("NN", "NNS", "NNP", "CD")]
    if not informative:
        return None
    wh = _who(subject, kinds, base_form(verb.main.text) if verb.main else "")
    group = list(verb.tokens)
    if (
        group[0].tag in ("VBP", "VB")
        and group[0].low not in BE
        and verb.main is not None
        and (group[0].low not in _UNCHANGED)
    ):
        group[0] = replace(group[0], text=third_person(base_form(group[0].text)))
    others = [p.tokens for p in (*clause.rest, *clause.fronted)]
    after = [words(tokens) for tokens in others]
    predicate = _join([words(tuple(group)), *after])
    named = any(t.tag == "NNP" for t in subject)
    gold = words(_stripped(subject))
    return (2 if named else 5), SentenceFact(
        asks=wh,
        gold=gold,
        direct=f"{wh.capitalize()} {predicate}?",
        indirect=f"{wh} {predicate}",
        cloze=_join([GAP, words(verb.tokens), *after]) + ".",
        keywords=_keywords([verb.chain or verb.tokens, *others]),
        names=_names(others),
    )


# ---- small pieces -------------------------------------------------------------------------------


def _join(parts: list[str]) -> str:
    return " ".join(part for part in parts if part)


def _lower_first(tokens: tuple[Token, ...]) -> tuple[Token, ...]:
    """The sentence's first word keeps its capital only where it is a name or "I"."""
    first = tokens[0]
    if first.tag in ("NNP", "NNPS") or first.text == "I" or " " in first.text or "'" in first.text:
        return tokens
    return (replace(first, text=first.text[0].lower() + first.text[1:]), *tokens[1:])


def _who(tokens: tuple[Token, ...], kinds: Mapping[str, str], verb: str) -> str:
    """Return "who" for a person, "what" for anything else."""
    if tokens[0].tag == "PRP" and tokens[0].low not in ("it",):
        return "who"
    known = kinds.get(words(tokens)) or kinds.get(words(_stripped(tokens)))
    if known is not None:
        return "who" if known == "person" else "what"
    if tokens[0].low in _TITLES:
        return "who"
    if any(t.tag == "POS" for t in tokens):
        return "what" if not tokens[-1].low.endswith(("er", "or", "ist")) else "who"
    if all(t.tag == "NNP" or t.low == "and" for t in tokens):
        first, last = tokens[0].low, tokens[-1].low
        if last in _THING_HEADS and len(tokens) > 1:
            return "what"
        if len(tokens) == 1 and verb == "object":
            return "what"
        described = len(tokens) > 1 and lexicon_tag(first) in ("NN", "JJ", "NNS")
        return "what" if described else "who"
    return "who" if verb in _HUMAN and tokens[-1].tag == "NN" else "what"


def _names(parts: list[tuple[Token, ...]]) -> tuple[str, ...]:
    names: list[str] = []
    for part in parts:
        run: list[Token] = []
        for token in (*part, None):
            if token is not None and token.tag == "NNP":
                run.append(token)
            elif run:
                names.append(words(tuple(run)))
                run = []
    return tuple(names)


_CONTENT = frozenset(
    ("NN", "NNS", "NNP", "NNPS", "CD", "JJ", "VB", "VBD", "VBZ", "VBP", "VBN", "VBG")
)


def _keywords(parts: list[tuple[Token, ...]]) -> str:
    """Content words in order, phrase by phrase, verbs in their base form."""
    keys: list[str] = []
    for part in parts:
        kept: list[str] = []
        for token in part:
            if token.tag not in _CONTENT or token.low in BE or token.low in DO:
                continue
            is_verb = token.tag.startswith("VB") and len(part) <= 3
            kept.append(base_form(token.text) if is_verb else token.text)
        if kept:
            keys.append(" ".join(kept))
    return ", ".join(keys)


def _anchored(fact: SentenceFact, clause: Clause, statement: Statement) -> SentenceFact | None:
    """Add the document's anchor to a question that would not stand alone, or give it up."""
    tokens = [*clause.subject, *(t for p in (*clause.rest, *clause.fronted) for t in p.tokens)]
    outside = {t.low for t in tokens} & set(re.findall(r"[\w']+", fact.direct.lower()))
    own = {"i", "my", "me", "myself"}
    if statement.speaker is None:
        own |= {"we", "our", "us", "ourselves"}
    if any(t.tag == "NNP" for t in clause.subject):
        own |= {"his", "her", "its", "their", "himself", "herself", "itself"}
    loose = outside & (PRONOUNS | DEICTIC) - own
    if statement.speaker is not None and loose & {"you", "your", "yours", "yourself"}:
        return None
    has_name = bool(fact.names)
    if clause.source and clause.source[0].tag != "PRP":
        by = words(_lower_first(clause.source))
        anchor = None if by in fact.direct else f"according to {by}"
        if anchor is not None:
            fact, has_name = _with_anchor(fact, anchor), True
    if has_name and not loose:
        return fact
    content = len(re.findall(r"\w+", fact.keywords))
    own_subject = clause.subject[0].low in ("i", "we") or has_name
    if content < 2 and not own_subject:
        return None
    if statement.anchor is None:
        return None if loose or not has_name else fact
    return _with_anchor(fact, statement.anchor)


def _with_anchor(fact: SentenceFact, anchor: str) -> SentenceFact:
    return replace(
        fact,
        direct=f"{fact.direct.rstrip('?')}, {anchor}?",
        indirect=f"{fact.indirect}, {anchor}",
        cloze=f"{fact.cloze} ({anchor[:1].upper()}{anchor[1:]})",
        keywords=f"{fact.keywords}, {anchor}",
    )
