"""An answer's text as its tokens come: what can be shown of it, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_HALF = "\N{REPLACEMENT CHARACTER}"  # what a character looks like whose last bytes are to come


class AnswerText:
    """The text of one answer. All that `add` and `end` return, joined, is the answer: its tokens
    decoded, without white space around it, up to the first of the `stops`.

    Args:
        decode: text of a list of tokens.
        stops: strings that end the answer.

    Attributes:
        stopped: one of `stops` was found.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self._decode = decode
        self._stops = stops
        self._tokens: list[int] = []
        self._from, self._to = 0, 0  # the tokens that were last decoded to whole characters
        self._text = ""
        self._shown = 0  # characters

    def add(self, token: int) -> str:
        """Return what can be shown now that `token` has come: whole characters that belong to the
        answer whatever comes next."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._from : self._to])
        # Together with the tokens before it: alone, a token may lose the space it begins with.
        now = self._decode(self._tokens[self._from :])
        if now.endswith(_HALF):
            return ""
        self._from, self._to = self._to, len(self._tokens)
        self._text = (self._text + now[len(before) :]).lstrip()
        self._cut()
        sure = len(self._text) - (0 if self.stopped else self._maybe_a_stop())
        return self._show(self._text[:sure].rstrip())

    def end(self) -> str:
        """Return what is left to show when no more tokens come."""
        if not self.stopped:
            self._text = self._decode(self._tokens).lstrip()
            self._cut()
        return self._show(self._text.rstrip())

    def _show(self, text: str) -> str:
        new = text[self._shown :]
        self._shown = max(self._shown, len(text))
        return new

    def _cut(self) -> None:
        """Cut the text at the first stop string; none begins in what was shown."""
        found = [self._text.find(stop, self._shown) for stop in self._stops]
        if places := [place for place in found if place >= 0]:
            self.stopped = True
            self._text = self._text[: min(places)]

    def _maybe_a_stop(self) -> int:
        """Length of the longest end of the text that may be the beginning of a stop string."""
        text = self._text
        return max(
            (
                length
                for stop in self._stops
                for length in range(1, min(len(stop), len(text) + 1))
                if text.endswith(stop[:length])
            ),
            default=0,
        )
