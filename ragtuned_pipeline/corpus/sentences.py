"""Sentences of a document: where each begins and ends, who says it, and on what date.

A text is read in two steps. Its lines are joined to blocks (a paragraph, a heading, a list item,
a turn of a chat), because a sentence never crosses a block; each block is then cut at the stops
that end a sentence. Header lines (`Title:`, `Time:`, `Participants:`, by-lines, front matter,
lines that hold a date only) belong to no block: they give the date instead.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from itertools import pairwise

# --- dates ------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_MONTHS = {
    name: number
    for number, name in enumerate(
        ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"), 1
    )
}
_MONTH = (
    r"(?P<{}>jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?"
    r"|sept?(?:ember)?|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = re.compile(
    r"(?<![\w.])(?:"
    r"(?P<y1>\d{4})(?P<s1>[-/.])(?P<m1>\d{1,2})(?P=s1)(?P<d1>\d{1,2})(?!\d)"
    r"|(?P<d2>\d{1,2})(?:st|nd|rd|th)?(?: of)?[ -]" + _MONTH.format("m2") + r",?[ -](?P<y2>\d{4})\b"
    r"|" + _MONTH.format("m3") + r" (?P<d3>\d{1,2})(?:st|nd|rd|th)?,? (?P<y3>\d{4})\b"
    r"|(?P<a4>\d{1,2})(?P<s4>[./])(?P<b4>\d{1,2})(?P=s4)(?P<y4>\d{4})\b"
    r")",
    re.IGNORECASE,
)
_WEEKDAY = r"(?:mon|tues?|wed(?:nes)?|thu(?:rs?)?|fri|sat(?:ur)?|sun)(?:day)?"
_NOT_A_WORD = re.compile(
    rf"\b{_WEEKDAY}\b\.?|\bat\b|\bT(?=\d\d:)"
    r"|\d{1,2}[:.]\d\d(?:[:.]\d\d)?(?:\.\d+)?(?:Z|\s*[ap]\.?m\b\.?)?|[\W_]",
    re.IGNORECASE,
)


def find_date(text: str) -> str | None:
    """Return the first full date in `text` as YYYY-MM-DD, or None.

    Day and month written as two numbers with "/" are taken only where one of them is above 12:
    3/4/2031 is two dates.
    """
    match = _first_date(text)
    return match[1] if match else None


def _first_date(text: str) -> tuple[re.Match[str], str] | None:
    for match in _DATE.finditer(text):
        found = _iso(match.groupdict(""))
        if found:
            return match, found
    return None


def _iso(part: dict[str, str]) -> str | None:
    if part["y1"]:
        year, month, day = part["y1"], part["m1"], part["d1"]
    elif part["y2"]:
        year, month, day = part["y2"], part["m2"], part["d2"]
    elif part["y3"]:
        year, month, day = part["y3"], part["m3"], part["d3"]
    else:
        year, month, day = part["y4"], part["b4"], part["a4"]
        if part["s4"] == "/":
            if int(day) <= 12 and int(month) <= 12 and day != month:
                return None
            if int(month) > 12:
                day, month = month, day
    number = _MONTHS.get(month[:3].lower()) or int(month)
    try:
        return date(int(year), number, int(day)).isoformat()
    except ValueError:
        return None


def _date_of_heading(line: str) -> tuple[str | None, bool]:
    """Return the date that a heading or by-line gives, and whether it says nothing else.

    "3 January 2033", "Journal, 3 January 2033" and "3 January 2033: rain" give their date;
    "The flood of 3 January 2033" speaks about another day than its own.
    """
    found = _first_date(line)
    if found is None:
        return None, False
    match, iso = found
    before, after = line[: match.start()], line[match.end() :]
    left = _NOT_A_WORD.sub(" ", before).split()
    alone = not left and not _NOT_A_WORD.sub(" ", after).split()
    own = len(left) <= 2 or before.rstrip()[-1:] in ",;:|([-–—·"
    return (iso if own else None), alone


# --- lines ------------------------------------------------------------------------------------

_LINE = re.compile(r"[^\n]+")
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\n((?:[^\n]*\n){0,60}?)(?:---|\.\.\.)[ \t]*(?:\n|\Z)")
_HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•‣◦–—]|\(?\d{1,3}[.)]|\(?[a-z]\))[ \t]+(?=\S)")
_QUOTE = re.compile(r"[ \t]{0,3}(?:>[ \t]?)+")
_QUOTE_WRAP = re.compile(r"\n[ \t]{0,3}(?:>[ \t]?)+")
_RULE = re.compile(r"[ \t]*(?:[-=*_~|:][ \t]*){3,}$")
_KEY = re.compile(r"[^\W\d_][\w ./-]{0,30}:(?:\s|$)")
_TURN = re.compile(
    r"[ \t]*"
    r"(?P<stamp>[\[(]?\d[\d:.,/T -]*(?:[AaPp]\.?[Mm]\.?)?[\])]?[ \t]*(?:[-–—][ \t]+)?)?"
    r"(?:\*\*|__)?"
    r"(?P<speaker>[^\W\d_][^\W_]*\.?(?:[ '’&./-]{1,2}[^\W_]+\.?){0,4}(?:[ ]\([^()\n]{1,30}\))?)"
    r"(?:\*\*|__)?(?P<late>[ ]?[\[(]\d[\d:., /-]*[\])])?"
    r":(?:\*\*|__)?(?:[ \t]+|$)"
)
_HEADER = re.compile(r"(?P<key>[^\W\d_][\w -]{0,20}):(?:\s+(?P<value>.*))?$")
_BY_LINE = re.compile(
    r"(?:by|written by|reported by)\s+[^\W\d_][^.!?]{0,80}(?:\.[^.!?]{1,60})?$", re.IGNORECASE
)
_DATE_LINE = re.compile(r"[A-Z][\w .'’-]{0,40}[,(]?\s*")

# Keys of a chat's header: never a speaker, wherever they stand.
_CHAT_KEYS = frozenset(("title", "time", "date", "participants", "participant"))
# Keys of the head of any document. "Host: Ann Orr" is one, "Host: Welcome!" is a turn.
_HEAD_KEYS = _CHAT_KEYS | _words(
    "author authors byline by published posted updated created source section subject topic "
    "from to cc sent speakers speaker host hosts guest guests location place episode series "
    "channel duration tags url id"
)
_CHAT_SHARE = 0.6  # of the lines of a chat's body are turns, list items apart
_LONG_TURNS_SHARE = 0.1  # the same where a header and the first line tell that it is a chat
# What labels a part of a message ("Tip: add salt", "Day 2: ..."), and nobody's name.
_ASIDES = _words(
    "note notes nb ps pps tip tips hint hints warning caution reminder reminders todo update edit "
    "example examples summary overview conclusion result results total subtotal budget cost costs "
    "price prices pros cons advantages disadvantages ingredients method instructions directions "
    "steps preparation serves servings breakfast lunch dinner supper snack snacks morning noon "
    "afternoon evening night monday tuesday wednesday thursday friday saturday sunday "
    "questions option options idea ideas goal goals reason reasons action actions day week "
    "month step part stage phase plan round level chapter section exercise set meal"
)
_OWNERS = _words("my your our their what when where which why how")
_NAME_PARTICLES = _words(
    "de del della di da du des la le van von der den ter bin ibn al el y of the"
)
_WRAP = 60  # characters; a line that is shorter than this with the next word was broken on purpose


@dataclass(frozen=True)
class Sentence:
    """One sentence.

    Attributes:
        start, end: characters in the document's text; a turn's `Speaker: ` prefix, a heading's
            `#` and a list item's mark lie outside.
        text: the characters from start to end, on one line, with single spaces.
        speaker: who says it, in a chat; None elsewhere.
        date: YYYY-MM-DD of the last header line or dated heading above it, else of the first in
            the document; None without one.
    """

    start: int
    end: int
    text: str
    speaker: str | None
    date: str | None


@dataclass(frozen=True)
class Head:
    """What the header lines of a document say: its title and its date (YYYY-MM-DD)."""

    title: str | None
    date: str | None


@dataclass(frozen=True)
class _Block:
    start: int
    end: int
    speaker: str | None = None
    date: str | None = None


def is_turn(line: str) -> bool:
    """Return whether `line` has the form `Speaker: words`."""
    return _TURN.match(line) is not None


def looks_like_chat(text: str) -> bool:
    """Return whether `text` is a chat log or a transcript.

    At least 60 % of its lines, headers and list items apart, have the form `Speaker: words`, and
    either a header (`Time:`, `Participants:` ...) stands above them or somebody speaks twice. Where
    a header stands above and the first line is a turn, two who speak, one of them twice, do.
    """
    asides = _asides(text)
    speakers: list[str] = []
    lines = 0
    headed = opens = False
    for match in _LINE.finditer(text):
        line = match[0]
        if not line.strip():
            continue
        turn = _TURN.match(line)
        if turn and turn["speaker"].lower() in _CHAT_KEYS:
            headed = True
        elif turn and lines == 0 and _is_head_line(line):
            continue
        elif turn and turn["speaker"] not in asides:
            opens = opens or lines == 0
            lines += 1
            speakers.append(turn["speaker"])
        elif not _LIST_ITEM.match(line):
            lines += 1
    different = len(set(speakers))
    repeated = different < len(speakers)
    if headed and opens and repeated and different > 1:
        return len(speakers) >= _LONG_TURNS_SHARE * lines
    return bool(speakers) and (headed or repeated) and len(speakers) >= _CHAT_SHARE * lines


def _asides(text: str) -> frozenset[str]:
    """Return the labels in front of a colon that only look like speakers.

    They are common ones ("Note", "Day 2"); those that occur once and go on in lower case ("Total
    cost") or stand alone on their line, where speakers do not; and, where two others speak, those
    that occur in the lists of messages only ("Wine: 3 bottles").
    """
    turns: dict[str, list[tuple[bool, bool]]] = {}  # label -> words follow, in a list
    common: set[str] = set()
    amid = False
    for match in _LINE.finditer(text):
        line = match[0].strip()
        turn = _TURN.match(match[0])
        label = turn["speaker"] if turn else ""
        if not line or label.lower() in _CHAT_KEYS:
            continue
        if turn and _is_common_label(label):
            common.add(label)
        elif turn:
            part = amid and not line.endswith((".", "!", "?", "…"))
            turns.setdefault(label, []).append((turn.end() < len(match[0].rstrip()), part))
        amid = bool(turns) and (turn is None or label in common or line.endswith(":"))
    every = [words for of_label in turns.values() for words, _ in of_label]
    on_one_line = 2 * sum(every) > len(every)
    once = {
        label
        for label, of_label in turns.items()
        if len(of_label) == 1 and (_is_phrase(label) or (on_one_line and not of_label[0][0]))
    }
    within = {
        label
        for label, of_label in turns.items()
        if len(of_label) <= 2 and all(inside for _, inside in of_label)
    }
    others = turns.keys() - once - within
    return frozenset(common | once | (within if len(others) > 1 else set()))


def _is_phrase(label: str) -> bool:
    words = label.split()
    return words[0][0].isupper() and any(
        word.islower() and word not in _NAME_PARTICLES for word in words[1:]
    )


def _is_common_label(label: str) -> bool:
    first, *rest = label.lower().split()
    return first in _OWNERS or (first in _ASIDES and all(part.isdigit() for part in rest))


def head_of(text: str, document_format: str) -> Head:
    """Return the title and the date that the head of a document gives.

    The title is that of a `title:` header, else the first markdown heading unless that is a date.
    """
    named: str | None = None
    heading: str | None = None
    for match in _LINE.finditer(text, 0, 4000):
        line = _plain(match[0])
        header = _HEADER.match(line)
        if named is None and header and header["key"].lower() == "title":
            named = (header["value"] or "").strip("\"'“” ")
        elif heading is None and _HEADING.match(match[0]):
            heading = "" if _date_of_heading(line)[1] else line.rstrip("#").rstrip()
    blocks = _blocks(text, document_format == "chat", headers=True)
    return Head(named or heading or None, _first_of(blocks))


def _first_of(blocks: Iterable[_Block]) -> str | None:
    return next((block.date for block in blocks if block.date), None)


def sentences_of(document_text: str, document_format: str) -> list[Sentence]:
    """Return the sentences of a document in order; header lines are not among them.

    Args:
        document_text: the text of a document.
        document_format: its `format`: "chat" texts are read as turns, all others as prose.
    """
    # A record's header is its other fields; a line `date: ...` of a record is part of its text.
    headers = document_format != "record"
    blocks = list(_blocks(document_text, document_format == "chat", headers))
    first = _first_of(blocks)
    return [
        Sentence(
            start,
            end,
            " ".join(_QUOTE_WRAP.sub(" ", document_text[start:end]).split()),
            block.speaker,
            block.date or first,
        )
        for block in blocks
        for start, end in _cut(document_text, block.start, block.end)
    ]


def split_sentences(text: str) -> list[tuple[int, int]]:
    """Return the character spans of the sentences of any text, ordered and disjoint.

    Headings, list items and chat lines are units of their own; hard line wraps inside a paragraph
    end nothing. A text that looks like a chat loses its header lines and `Speaker: ` prefixes.
    """
    chat = looks_like_chat(text)
    return [
        span
        for block in _blocks(text, chat, headers=chat)
        for span in _cut(text, block.start, block.end)
    ]


# --- blocks -----------------------------------------------------------------------------------


def _blocks(text: str, chat: bool, headers: bool) -> Iterator[_Block]:
    """Yield the blocks of `text`; with `headers`, header lines give dates and no blocks."""
    when: str | None = None
    speaker: str | None = None
    at = 0
    if headers and (front := _FRONT_MATTER.match(text)) and _KEY.search(front[1]):
        when = find_date(front[1])
        at = front.end()
    lines: list[tuple[int, int]] = []  # of the paragraph that is being joined
    in_head = True
    asides = _asides(text) if chat else frozenset()

    def paragraph() -> Iterator[_Block]:
        for start, end in _parts(text, lines):
            yield _Block(start, end, speaker, when)
        lines.clear()

    last = at - 1
    for match in _LINE.finditer(text, at):
        start, end = match.span()
        line = match[0]
        if start > last + 1 or not line.strip() or _RULE.match(line):
            yield from paragraph()
        last = end
        if not line.strip() or _RULE.match(line):
            continue
        heading = _HEADING.match(line)
        if headers:
            found, is_header = _header_line(line, bool(heading), in_head, chat)
            if found or is_header:
                yield from paragraph()
                when = found or when
            if is_header:
                continue
        if heading:
            yield from paragraph()
            yield _Block(start + heading.end(), end, speaker, when)
            continue
        if in_head and headers and not lines and when is None:
            when = _date_line(line)
        in_head = False
        turn = _TURN.match(line) if chat else None
        if turn and turn["speaker"] not in asides:
            yield from paragraph()
            speaker = turn["speaker"]
            when = find_date(turn["stamp"] or "") or when
            start += turn.end()
        elif mark := _LIST_ITEM.match(line):
            yield from paragraph()
            start += mark.end()
        elif mark := _QUOTE.match(line):
            if not lines or not _QUOTE.match(text, text.rfind("\n", 0, lines[-1][0]) + 1):
                yield from paragraph()
            start += mark.end()
        elif chat and lines and _new_line(text[lines[-1][0] : lines[-1][1]], line):
            yield from paragraph()
        if start < end:
            lines.append((start, end))
    yield from paragraph()


def _new_line(line: str, following: str) -> bool:
    """Return whether a message breaks between two lines on purpose."""
    first = following.split(maxsplit=1)[0]
    return not first[0].islower() and len(line.rstrip()) + 1 + len(first) < _WRAP


def _parts(text: str, lines: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the blocks of a paragraph's lines: one, unless each line stands for itself.

    Lines stand for themselves in tables, in `key: value` lists, and where each of three lines or
    more begins with a capital or a digit and breaks off before a wrapped line would have.
    """
    if not lines:
        return []
    words = [text[start:end] for start, end in lines]
    if len(lines) > 1:
        table = all(line.lstrip().startswith("|") for line in words)
        keyed = all(_KEY.match(line) for line in words)
        if table or keyed or _broken_on_purpose(words):
            return lines
    return [(lines[0][0], lines[-1][1])]


def _broken_on_purpose(lines: list[str]) -> bool:
    """Return whether a greedy wrap would have broken none of these lines where they break."""
    if len(lines) < 3 or not all(
        line.lstrip()[:1].isupper() or line.lstrip()[:1].isdigit() for line in lines
    ):
        return False
    width = max(40, *map(len, lines))
    return all(
        len(line.rstrip()) + 1 + len(following.split(maxsplit=1)[0]) <= width
        for line, following in pairwise(lines)
    )


def _plain(line: str) -> str:
    return line.strip().lstrip("#").replace("**", "").replace("__", "").strip("*_ \t")


def _is_head_line(line: str) -> bool:
    header = _HEADER.match(_plain(line))
    if header is None or header["key"].lower() not in _HEAD_KEYS:
        return False
    # A name or a place, not something that is said.
    return header["key"].lower() in _CHAT_KEYS or not (header["value"] or "").endswith(
        (".", "!", "?", "…")
    )


def _header_line(line: str, heading: bool, in_head: bool, chat: bool) -> tuple[str | None, bool]:
    """Return the date that the line sets, and whether it is a header line."""
    plain = _plain(line)
    if header := _HEADER.match(plain):
        key, value = header["key"].lower(), header["value"] or ""
        dated = find_date(value) if key not in ("title", "subject", "topic") else None
        if not heading and (
            (chat and key in _CHAT_KEYS)
            or (in_head and _is_head_line(line))
            or (key in ("date", "time") and dated is not None)
        ):
            return dated, True
    found, alone = _date_of_heading(plain)
    if alone:
        return found, True
    if heading:
        return found, False
    if in_head and len(plain) <= 100 and not _LIST_ITEM.match(line):
        ends_with_date = found is not None and _date_is_last(plain)
        if _BY_LINE.match(plain) or ends_with_date:
            return find_date(plain), True
    return None, False


def _date_is_last(line: str) -> bool:
    found = _first_date(line)
    if found is None or line[:1].isdigit() or line.endswith((".", "!", "?")):
        return False
    return not _NOT_A_WORD.sub(" ", line[found[0].end() :]).split()


def _date_line(line: str) -> str | None:
    """Return the date of a news dateline, `KELSTRAND, 4 March 2031 - The ...`."""
    found = _first_date(line[:90])
    if found is None or not _DATE_LINE.fullmatch(line[: found[0].start()]):
        return None
    return found[1] if re.match(r"\)?\s*[—–-]", line[found[0].end() :]) else None


# --- stops ------------------------------------------------------------------------------------

_STOP = re.compile(
    r"(?P<stop>[.!?…]+)(?P<close>[\"'”’»)\]*_]*(?:\[\d+\])*)"
    r"(?P<face>(?:\s*[\U0001f000-\U0001faff\u2600-\u27bf\ufe0f\u200d]+)*)(?P<gap>\s+)"
    r"|(?P<wide>[。！？]+[」』”’]*)\s*"
)
_WORD = re.compile(r"[^\W_]")
_OPEN = re.compile(r"[\"'“‘«(\[*_—–-]*\s*")
_LAST_TOKEN = re.compile(r"[^\s\"'“”‘’(\[—–]*$")
_LOWER_NEXT = re.compile(r"[^\W\d_]")
_STARTER = re.compile(
    r"(?:The|An?|It|He|She|They|We|I|You|In|On|At|But|And|Or|So|Then|This|That|These|Those|His|Her|Its|Their"
    r"|Our|My|Your|When|While|After|Before|As|If|There|Here|For|By|From|With|Since|Until|Although|Though"
    r"|Because|What|Who|How|Why|Where|Some|Many|Most|All|Every|Each|No|Not|Nobody|Nothing|Now|Yes|To|Both"
    r"|One|Two|Three|Another|Later|Once)\b(?!\.)"
)
_TAG = re.compile(
    r"(?:[^\W\d_a-z][\w'’-]* ){1,3}"
    r"(?:said|says|asked|asks|replied|answered|added|wrote|writes|cried|shouted|whispered|told|called|laughed)\b"
)
_DAY_OR_MONTH = re.compile(
    r"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|(?:January|February|March|April|May|June|July|August"
    r"|September|October|November|December)\b"
)
# A name or a number follows, never a new sentence.
_INNER = _words(
    "mr mrs ms mx messrs dr prof rev fr hon capt cmdr col gen lt maj sgt cpl pvt gov sen rep "
    "pres supt insp mt ft vs e.g i.e cf viz fig figs vol vols pp ch sec art approx ca al "
    "ed eds trans nr op"
)
# A new sentence follows where its first word is one that begins sentences.
_EITHER = _words(
    "st jr sr inc ltd co corp bros dept univ assn ave blvd rd jan feb mar apr jun jul aug sep "
    "sept oct nov dec est tel ext min max hr hrs sq gal lb oz"
)
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]|[A-Z][a-z]\.[A-Z]")


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans of the sentences in the block text[start:end], without outer white space.

    What holds no letter or digit (a smiley) belongs to the sentence before it.
    """
    held: tuple[int, int] | None = None
    for span in _stretches(text, start, end):
        if held and not _WORD.search(text, *span):
            held = (held[0], span[1])
            continue
        if held:
            yield held
        held = span
    if held:
        yield held


def _stretches(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the spans between the stops of the block text[start:end]."""
    while start < end and text[start].isspace():
        start += 1
    # A writer who begins without a capital goes on without.
    first = _LOWER_NEXT.search(text, start, min(end, start + 80))
    small = first is not None and first[0].islower()
    for match in _STOP.finditer(text, start, end):
        if match.end() >= end:
            break
        if match["wide"] or _ends_sentence(text, start, match, end, small):
            stop = match.end("wide") if match["wide"] else match.end("face")
            if start < stop:
                yield start, stop
            start = match.end()
    while end > start and text[end - 1].isspace():
        end -= 1
    if start < end:
        yield start, end


def _ends_sentence(text: str, start: int, match: re.Match[str], end: int, small: bool) -> bool:
    opened = _OPEN.match(text, match.end(), end)
    following = opened.end() if opened else match.end()
    first = text[following : following + 1]
    if first.islower() and not small:
        return False
    if match["close"] and _TAG.match(text, following, end):
        return False
    if match["stop"] != ".":
        return True
    token_match = _LAST_TOKEN.search(text, max(start, match.start() - 40), match.start())
    token = token_match[0] if token_match else ""
    word = token.lower()
    starts = _STARTER.match(text, following, end) is not None
    if word in _INNER:
        return False
    if word == "no":
        return not first.isdigit()
    if word in ("a.m", "p.m", "am", "pm"):
        return not first.islower() and _DAY_OR_MONTH.match(text, following, end) is None
    if word == "etc":
        return not first.islower()
    if word in _EITHER or (_INITIALS.fullmatch(token) and token != "I"):
        return starts
    return True
