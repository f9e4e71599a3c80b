"""The report's plots as SVG text: deterministic, coloured by the page's style sheet (so that they
follow light and dark), and drawn at phone width so that their words stay readable there.

Every text that is drawn is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ragtuned_pipeline.evaluation.reporting.findings import percent

WIDTH = 316  # of every plot, in the units of its viewBox


@dataclass(frozen=True)
class Bar:
    """A share between 0 and 1, with its interval where one is known; `style` is a class of the
    style sheet."""

    label: str
    value: float
    low: float | None
    high: float | None
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


def bars(rows: Sequence[Bar], title: str, origin: float = 0.0) -> str:
    """Return a horizontal bar for each row on a scale from 0 to 100 %, with its interval as a
    whisker. Bars begin at `origin`: at 0.5 they show who wins."""
    left, right, step, top = 112, 44, 26, 4
    span = WIDTH - left - right
    bottom = top + step * len(rows)
    parts = [
        f'<line class="{"axis" if x == origin else "grid"}" x1="{_n(left + span * x)}" '
        f'x2="{_n(left + span * x)}" y1="{top}" y2="{bottom}"/>'
        f'<text class="tick" x="{_n(left + span * x)}" y="{bottom + 13}" '
        f'text-anchor="middle">{round(100 * x)}</text>'
        for x in (0, 0.25, 0.5, 0.75, 1)
    ]
    for place, row in enumerate(rows):
        middle = top + step * (place + 0.5)
        first, last = sorted((left + span * origin, left + span * row.value))
        width = max(last - first, 1.5)
        parts.append(
            f'<text x="{left - 8}" y="{_n(middle + 4)}" text-anchor="end">'
            f"{escape(row.label)}</text>"
            f'<rect class="fill {row.style}" x="{_n(first)}" y="{_n(middle - 7)}" '
            f'width="{_n(width)}" height="14" rx="2"/>'
            f'<text class="value" x="{WIDTH}" y="{_n(middle + 4)}" text-anchor="end">'
            f"{percent(row.value)}</text>"
        )
        if row.low is not None and row.high is not None:
            low, high = (_n(left + span * end) for end in (row.low, row.high))
            path = f"M{low} {_n(middle)}H{high}M{low} {_n(middle - 4)}v8M{high} {_n(middle - 4)}v8"
            parts.append(_whisker(path))
    return _svg(bottom + 18, title, parts)


def groups(named: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    """Return upright bars side by side in groups, each bar with its label, value and whisker (after
    the paper's Fig. 3). The scale ends at the round share above the highest whisker."""
    left, right, top, height = 36, 4, 18, 168
    bottom = top + height
    highest = max(bar.value if bar.high is None else bar.high for _, row in named for bar in row)
    ticks = _ticks(highest)
    scale = height / ticks[-1]
    parts = [_level(left, right, bottom - scale * tick, f"{100 * tick:g}") for tick in ticks]
    # A gap of one bar stands between two groups.
    slot = (WIDTH - left - right) / (sum(len(row) + 1 for _, row in named))
    x = left + slot / 2
    for name, row in named:
        parts.append(
            f'<text x="{_n(x + slot * len(row) / 2)}" y="{bottom + 30}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
        for bar in row:
            middle, peak = x + slot / 2, bottom - scale * bar.value
            tip = bottom - scale * (bar.value if bar.high is None else bar.high)
            parts.append(
                f'<rect class="fill {bar.style}" x="{_n(x + slot * 0.1)}" y="{_n(peak)}" '
                f'width="{_n(slot * 0.8)}" height="{_n(bottom - peak)}"/>'
                f'<text class="tick" x="{_n(middle)}" y="{bottom + 13}" text-anchor="middle">'
                f"{escape(bar.label)}</text>"
                f'<text class="value" x="{_n(middle)}" y="{_n(tip - 5)}" text-anchor="middle">'
                f"{percent(bar.value)}</text>"
            )
            if bar.low is not None and bar.high is not None:
                low, high = (_n(bottom - scale * end) for end in (bar.low, bar.high))
                ends = f"M{_n(middle - 4)} {low}h8M{_n(middle - 4)} {high}h8"
                parts.append(_whisker(f"M{_n(middle)} {low}V{high}{ends}"))
            x += slot
        x += slot
    return _svg(bottom + 36, title, parts)


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
    """Return marks with quality upwards, in per cent from 0, and cost rightwards, by powers of ten.

    A cost of nothing, which has no logarithm, is drawn at the left edge.
    """
    left, right, top, height = 36, 14, 14, 176
    span, bottom = WIDTH - left - right, top + height
    costs = [mark.x for mark in marks if mark.x > 0] or [1.0]
    first = math.floor(math.log10(min(costs)))
    last = max(math.ceil(math.log10(max(costs))), first + 1)
    ticks = _ticks(max(mark.y for mark in marks))
    parts = [
        _level(left, right, bottom - height * tick / ticks[-1], f"{100 * tick:g}") for tick in ticks
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
    placed = [
        (
            left + span * (math.log10(mark.x) - first) / (last - first) if mark.x > 0 else left,
            bottom - height * mark.y / ticks[-1],
            mark,
        )
        for mark in sorted(marks, key=lambda m: (-m.y, m.x, m.label))
    ]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in placed]
    labels = []
    for x, y, mark in placed:
        box = _room(x, y, 6.4 * len(mark.label), taken, (left, top - 10, WIDTH, bottom))
        taken.append(box)
        labels.append(box)
        middle, near = (box[1] + box[3]) / 2, min(max(x, box[0]), box[2])
        if abs(middle - y) > 18 or (abs(middle - y) > 10 and near != x):
            parts.append(f'<path class="leader" d="M{_n(x)} {_n(y)}L{_n(near)} {_n(middle)}"/>')
    for (x, y, mark), box in zip(placed, labels, strict=True):
        side, anchor = (box[2], "end") if box[2] < x else (box[0], "start")
        parts.append(
            f'<circle class="fill {mark.style}" cx="{_n(x)}" cy="{_n(y)}" r="5"/>'
            f'<text x="{_n(side)}" y="{_n(box[3] - 2)}" text-anchor="{anchor}">'
            f"{escape(mark.label)}</text>"
        )
    return _svg(bottom + 34, title, parts)


_Box = tuple[float, float, float, float]  # left, top, right, bottom


def _room(x: float, y: float, width: float, taken: Sequence[_Box], frame: _Box) -> _Box:
    """Return a place for a label beside the mark at (x, y): the nearest one in the frame that
    covers nothing; where all are taken, the one that covers least."""
    boxes = [
        (start, y + shift - 6, start + width, y + shift + 6)
        for shift in sorted(range(-84, 85, 6), key=lambda s: (abs(s), s))
        # Beside the mark, or over and under it where that is far enough away.
        for start in (x + 9, x - 9 - width, *([x - width / 2] if abs(shift) > 12 else []))
    ]
    inside = [
        box
        for box in boxes
        if box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
    ]
    return min(inside or boxes[:1], key=lambda box: sum(_shared(box, other) for other in taken))


def _shared(one: _Box, other: _Box) -> float:
    """The area that two boxes have in common, with a little air at their sides."""
    width = min(one[2], other[2]) - max(one[0], other[0]) + 2
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {_n(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _whisker(path: str) -> str:
    """A whisker with a halo, so that it is seen on its bar as well as beside it."""
    return f'<path class="halo" d="{path}"/><path class="whisker" d="{path}"/>'


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
