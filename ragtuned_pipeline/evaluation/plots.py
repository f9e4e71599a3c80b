"""The report's plots as SVG text: deterministic, coloured by the page's style sheet (so that they
follow light and dark), and drawn at phone width so that their words stay readable there.

Every text that is drawn is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ragtuned_pipeline.evaluation.findings import percent

WIDTH = 316  # of every plot, in the units of its viewBox


@dataclass(frozen=True)
class Bar:
    """A share with its interval, all between 0 and 1; `style` is a class of the style sheet."""

    label: str
    value: float
    low: float
    high: float
    style: str


@dataclass(frozen=True)
class Line:
    """Points (x, y), left to right."""

    label: str
    points: Sequence[tuple[float, float]]
    style: str


@dataclass(frozen=True)
class Mark:
    """One system in the plane of cost and quality."""

    label: str
    x: float
    y: float
    style: str


def bars(rows: Sequence[Bar], title: str) -> str:
    """Return a horizontal bar for each row, from 0 to 100 %, with its interval as a whisker."""
    left, right, step, top = 84, 44, 26, 4
    span = WIDTH - left - right
    bottom = top + step * len(rows)
    parts = [
        f'<line class="grid" x1="{_n(left + span * x)}" x2="{_n(left + span * x)}" '
        f'y1="{top}" y2="{bottom}"/>'
        f'<text class="tick" x="{_n(left + span * x)}" y="{bottom + 13}" '
        f'text-anchor="middle">{round(100 * x)}</text>'
        for x in (0, 0.25, 0.5, 0.75, 1)
    ]
    for place, row in enumerate(rows):
        middle = top + step * (place + 0.5)
        low, high = (_n(left + span * end) for end in (row.low, row.high))
        parts.append(
            f'<text x="{left - 8}" y="{_n(middle + 4)}" text-anchor="end">'
            f"{escape(row.label)}</text>"
            f'<rect class="fill {row.style}" x="{left}" y="{_n(middle - 7)}" '
            f'width="{_n(max(span * row.value, 1.5))}" height="14" rx="2"/>'
            f'<path class="whisker" d="M{low} {_n(middle)}H{high}'
            f'M{low} {_n(middle - 4)}v8M{high} {_n(middle - 4)}v8"/>'
            f'<text class="value" x="{WIDTH}" y="{_n(middle + 4)}" text-anchor="end">'
            f"{percent(row.value)}</text>"
        )
    return _svg(bottom + 18, title, parts)


def lines(curves: Sequence[Line], title: str, x_label: str, y_label: str) -> str:
    """Return curves in one plane from the origin, with their last value at their end."""
    left, right, top, height = 36, 12, 20, 168
    span, bottom = WIDTH - left - right, top + height
    x_most = max(x for curve in curves for x, _ in curve.points) or 1
    ticks = _ticks(max(y for curve in curves for _, y in curve.points))
    parts = [_level(left, right, bottom - height * tick / ticks[-1], f"{tick:g}") for tick in ticks]
    parts += [
        f'<text class="tick" x="{_n(left + span * x / x_most)}" y="{bottom + 14}" '
        f'text-anchor="{anchor}">{x:,.0f}</text>'
        for x, anchor in ((0.0, "start"), (x_most / 2, "middle"), (float(x_most), "end"))
    ]
    parts.append(
        f'<text class="tick" x="{left - 28}" y="{top - 8}">{escape(y_label)}</text>'
        f'<text class="tick" x="{WIDTH - right}" y="{bottom + 28}" text-anchor="end">'
        f"{escape(x_label)}</text>"
    )
    for curve in curves:
        points = [
            (left + span * x / x_most, bottom - height * y / ticks[-1]) for x, y in curve.points
        ]
        path = " ".join(f"{_n(x)},{_n(y)}" for x, y in points)
        end = points[-1]
        parts.append(
            f'<polyline class="curve {curve.style}" points="{path}"/>'
            f'<circle class="fill {curve.style}" cx="{_n(end[0])}" cy="{_n(end[1])}" r="3"/>'
        )
    return _svg(bottom + 34, title, parts)


def plane(marks: Sequence[Mark], title: str, x_label: str) -> str:
    """Return marks with quality from 0 to 100 % upwards and cost rightwards, by powers of ten.

    A cost of nothing, which has no logarithm, is drawn at the left edge.
    """
    left, right, top, height = 36, 14, 14, 168
    span, bottom = WIDTH - left - right, top + height
    costs = [mark.x for mark in marks if mark.x > 0] or [1.0]
    first = math.floor(math.log10(min(costs)))
    last = max(math.ceil(math.log10(max(costs))), first + 1)
    parts = [
        _level(left, right, bottom - height * share / 100, str(share))
        for share in (0, 25, 50, 75, 100)
    ]
    # At most five ticks, so that they do not run into one another.
    stride = -(-(last - first) // 4)
    parts += [
        f'<text class="tick" x="{_n(left + span * (power - first) / (last - first))}" '
        f'y="{bottom + 14}" text-anchor="middle">{_power(power)}</text>'
        for power in range(first, last + 1, stride)
    ]
    parts.append(
        f'<text class="tick" x="{WIDTH - right}" y="{bottom + 28}" text-anchor="end">'
        f"{escape(x_label)}</text>"
    )
    taken: list[tuple[float, float]] = []
    for mark in sorted(marks, key=lambda m: (-m.y, m.x, m.label)):
        place = (math.log10(mark.x) - first) / (last - first) if mark.x > 0 else 0.0
        x, y = left + span * place, bottom - height * mark.y
        leftwards = x > WIDTH * 0.6
        label_x, label_y = x + (-9 if leftwards else 9), y + 4
        while any(abs(label_y - b) < 12 and abs(x - a) < 100 for a, b in taken):
            label_y -= 12
        taken.append((x, label_y))
        parts.append(
            f'<circle class="fill {mark.style}" cx="{_n(x)}" cy="{_n(y)}" r="5"/>'
            f'<text x="{_n(label_x)}" y="{_n(label_y)}" '
            f'text-anchor="{"end" if leftwards else "start"}">{escape(mark.label)}</text>'
        )
    return _svg(bottom + 34, title, parts)


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _level(left: float, right: float, y: float, text: str) -> str:
    """A horizontal grid line with its tick."""
    return (
        f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{_n(y)}" y2="{_n(y)}"/>'
        f'<text class="tick" x="{left - 6}" y="{_n(y + 3.5)}" text-anchor="end">{text}</text>'
    )


def _n(value: float) -> str:
    """A coordinate with at most one decimal, the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")


def _ticks(most: float) -> list[float]:
    """Return 0 and the round steps up to the first one at or above `most`: three to six ticks."""
    if most <= 0:
        return [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(most))
    step = next(unit * part for part in (0.2, 0.5, 1, 2) if most / (unit * part) <= 5)
    return [step * place for place in range(math.ceil(most / step - 1e-9) + 1)]


def _power(power: int) -> str:
    return f"{10**power:,}" if power >= 0 else f"{10.0**power:.{-power}f}"
