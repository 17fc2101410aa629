"""Charts as inline SVG that follows the page: colours from its style sheet, coordinates in percent.

A strip or a bar has no text of its own. Labels and numbers are HTML beside it, so they keep their
size on a phone, where a drawing with a fixed view shrinks until nobody can read it. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

_MAX_POINTS = 500  # of a line
_MARGIN = 2.0  # percent of a strip's width left free at each end, so that a point is not cut


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value lies between two ends, which need not hold every value."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Percent of the width; a value beyond an end lies on it."""
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return _MARGIN + (100 - 2 * _MARGIN) * min(max(share, 0.0), 1.0)


def strip(
    scale: Scale,
    label: str,
    value: float | None,
    interval: tuple[float, float] | None = None,
    allowed: tuple[float | None, float | None] = (None, None),
) -> Markup:
    """A point with its interval, before the range a rule allows; zero is marked where it is shown.

    Args:
        label: what a screen reader says.
        allowed: from, to; None is no bound on that side, and both None draw no range.
    """
    marks = []
    if allowed != (None, None):
        left = 0.0 if allowed[0] is None else scale.place(allowed[0])
        right = 100.0 if allowed[1] is None else scale.place(allowed[1])
        marks.append(_rect("allowed", left, right - left))
        marks += [_tick("margin", scale.place(end)) for end in allowed if end is not None]
    if scale.low < 0 < scale.high:
        marks.append(_tick("zero", scale.place(0)))
    if interval is not None:
        ends = [scale.place(end) for end in interval]
        marks.append(
            Markup('<line class="range" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>').format(
                *ends
            )
        )
        marks += [_tick("end", end, "32%", "68%") for end in ends]
    if value is not None:
        marks.append(Markup('<circle cx="{:.2f}%" cy="50%" r="4.5"/>').format(scale.place(value)))
    return _svg("strip", label, marks)


def bar(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """Shares of a whole, one after the other.

    Args:
        parts: style sheet class, share between 0 and 1.
    """
    marks, left = [], 0.0
    for name, share in parts:
        width = 100 * min(max(share, 0.0), 1.0)
        marks.append(_rect(name, left, width))
        left += width
    return _svg("stack", label, marks)


def line(points: Sequence[tuple[float, float]], label: str) -> Markup:
    """A line through points (x, y), stretched over its frame; empty for fewer than two. Of very
    many, every n-th and the last."""
    if len(points) < 2:
        return Markup("")
    every = math.ceil(len(points) / _MAX_POINTS)
    points = [*points[:-1:every], points[-1]]
    across = Scale(min(x for x, _ in points), max(x for x, _ in points))
    up = Scale(min(0.0, *(y for _, y in points)), max(y for _, y in points))
    path = " ".join(f"{across.place(x):.2f},{100 - up.place(y):.2f}" for x, y in points)
    return Markup(
        '<svg class="curve" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" '
        'aria-label="{}"><polyline points="{}" vector-effect="non-scaling-stroke"/></svg>'
    ).format(label, path)


@dataclass(frozen=True, slots=True)
class Night:
    """A column of the history: a score with its interval, and whether its model was promoted."""

    label: str
    value: float | None
    interval: tuple[float, float] | None
    promoted: bool


def history(nights: Sequence[Night], scale: Scale, label: str) -> Markup:
    """A column for each night, oldest first: filled where promoted, hollow where not, a cross at
    the foot of a night without a score."""
    marks = []
    for index, night in enumerate(nights):
        x = 100 * (index + 0.5) / len(nights)
        inner = [Markup("<title>{}</title>").format(night.label)]
        if night.value is None:
            inner.append(
                Markup('<text x="{:.2f}%" y="98%" text-anchor="middle">×</text>').format(x)
            )
        else:
            if night.interval is not None:
                low, high = (100 - scale.place(end) for end in night.interval)
                inner.append(
                    Markup(
                        '<line class="range" x1="{0:.2f}%" x2="{0:.2f}%" y1="{1:.2f}%" '
                        'y2="{2:.2f}%"/>'
                    ).format(x, low, high)
                )
            inner.append(
                Markup('<circle class="{}" cx="{:.2f}%" cy="{:.2f}%" r="4"/>').format(
                    "promoted" if night.promoted else "other", x, 100 - scale.place(night.value)
                )
            )
        marks.append(Markup("<g>{}</g>").format(Markup("").join(inner)))
    return _svg("history", label, marks)


def _svg(name: str, label: str, marks: Sequence[Markup]) -> Markup:
    return Markup('<svg class="{}" role="img" aria-label="{}">{}</svg>').format(
        name, label, Markup("").join(marks)
    )


def _rect(name: str, left: float, width: float) -> Markup:
    return Markup('<rect class="{}" x="{:.2f}%" width="{:.2f}%" height="100%"/>').format(
        name, left, max(width, 0.0)
    )


def _tick(name: str, x: float, top: str = "0", bottom: str = "100%") -> Markup:
    return Markup('<line class="{0}" x1="{1:.2f}%" x2="{1:.2f}%" y1="{2}" y2="{3}"/>').format(
        name, x, top, bottom
    )
