"""What keeps a teacher's pair out of tuning, as far as it can be seen in the words alone."""

from __future__ import annotations

import re
from collections.abc import Collection

REFUSAL = "answer is a refusal"
NOT_SELF_CONTAINED = "not self-contained"
NO_SUBJECT = "question without its subject"
TOO_LONG = "answer too long"
GIVEN_AWAY = "question holds its answer"
EXACT_DUPLICATE = "exact duplicate"
NEAR_DUPLICATE = "near duplicate"
NOT_GROUNDED = "not grounded in its evidence"
BESIDE_THE_POINT = "answer misses the question"
OTHER_QUESTION = "wording asks something else"
KNOWN = "known to the base model"
ROW_LIMIT = "left out: synthesis.rows_per_document or synthesis.max_rows"

# "the text", but not "the text of the treaty"; "the passage of time".
_SOURCE = re.compile(
    r"""
    \b(?:the|this|that|these) \s (?:(?:given|provided|above|following|present) \s)?
        (?:text|passage|excerpt|snippet|paragraph)s? \b (?! \s (?:of|through|to|between|on)\b)
    | \b(?:given|provided) \s (?:context|evidence|document|information|article|report)s?\b
    | \b(?:according\ to|based\ on|(?:stated|mentioned|described|reported|written|found|given)\ in)
        \s (?:the|this|these) \s
        (?:document|article|report|evidence|context|author|narrator|source|story|entry|transcript)s?
        \b (?! \s of\b)
    | \b(?:the|this) \s (?:document|article|author|narrator) \s
        (?:says|states|mentions|describes|reports|does|did|tells|explains|notes|suggests)\b
    | \bas \s (?:mentioned|stated|described|noted) \s (?:above|earlier|before|here)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_UNDATED = re.compile(
    r"\b(?:today|yesterday|tomorrow|tonight|(?:last|next|this) (?:week|month|year|night))\b",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"""
    ^\W* (?:
        (?:i|we)(?:\ am|['’]m|\ are)? \s (?:sorry|unable|cannot|can['’]t|could\ not|do\ not\ have|
            don['’]t\ have|do\ not\ know|don['’]t\ know)
        | sorry\b | unable\ to\b | n/?a\W*$ | unknown\W*$ | unanswerable | insufficient\b
        | (?:it|this|that)\ (?:is|was)\ not\ (?:stated|mentioned|specified|provided|given|known)
        | not\ (?:stated|mentioned|specified|provided|given|available|applicable|enough)\b
        | (?:there\ is\ )?no\ (?:information|answer|mention|evidence|details)\b
        | as\ an\ ai\b | cannot\ be\ (?:answered|determined)
    )
    | \b(?:text|passage|evidence|context|documents?|article|information)\ (?:provided\ )?
        (?:does|do|did)(?:\ not|n['’]t)\ (?:state|mention|say|specify|provide|contain|answer|give)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_refusal(answer: str) -> bool:
    """Say whether an answer says that there is none."""
    return _REFUSED.search(answer) is not None


def speaks_of_its_source(text: str) -> bool:
    """Say whether a text cannot stand without the one that it was made from."""
    return _SOURCE.search(text) is not None


def is_undated(question: str) -> bool:
    """Say whether a question names its time by when it was written: "last week"."""
    return _UNDATED.search(question) is not None


def names_one_of(text: str, names: Collection[str]) -> bool:
    """Say whether `text` holds one of `names` as whole words, whatever the capitals."""
    folded = text.casefold()
    return any(
        name.casefold() in folded
        and re.search(rf"(?<!\w){re.escape(name.casefold())}(?!\w)", folded) is not None
        for name in names
        if name
    )
