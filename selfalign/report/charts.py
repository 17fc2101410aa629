"""Charts as inline SVG: matplotlib places marks, axes and text, the page's style sheet colours
them.

An artist's gid becomes a class; of matplotlib's SVG only shapes and text are kept, without colour,
font, id or style, so that one drawing serves light and dark and none disturbs another. A strip or a
bar has no text of its own: labels and numbers are HTML beside it and keep their size on a phone.
"""

from __future__ import annotations

import functools
import io
import logging
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from markupsafe import Markup

from selfalign.errors import needing, printable

if TYPE_CHECKING:  # it takes a second to import: only when a chart is drawn
    from matplotlib.axes import Axes

_MAX_POINTS = 500  # of a line
_LARGEST = 1e300  # value of one with axes, which cannot divide a longer range by ticks
_MARGIN = 0.02  # of a strip's width left free at each end, so that a point is not cut
_RADIUS = 4.0  # of a point; lengths are pixels of a drawing that is not scaled
_STRIP, _BAR, _LINE, _HISTORY = (320, 22), (320, 16), (400, 190), (760, 220)
_EDGES = 50, 30, 12, 10  # left, bottom, right, top of a frame, for the numbers of its ticks


@dataclass(frozen=True, slots=True)
class Scale:
    """Where a value lies between two ends, which need not hold every value."""

    low: float
    high: float

    def place(self, value: float) -> float:
        """Share of the way from end to end; a value beyond an end lies on it."""
        return min(max((value - self.low) / ((self.high - self.low) or 1.0), 0.0), 1.0)


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
    with _sheet(_STRIP) as axes:
        axes.set(xlim=(-_MARGIN, 1 + _MARGIN), ylim=(-1, 1))
        if allowed != (None, None):
            left = -_MARGIN if allowed[0] is None else scale.place(allowed[0])
            right = 1 + _MARGIN if allowed[1] is None else scale.place(allowed[1])
            axes.axvspan(left, right, gid="allowed")
            for end in allowed:
                if end is not None:
                    axes.axvline(scale.place(end), gid="margin")
        if scale.low < 0 < scale.high:
            axes.axvline(scale.place(0), gid="zero")
        if interval is not None:
            low, high = map(scale.place, interval)
            axes.plot([low] * 3 + [high] * 3, [-0.4, 0.4, 0, 0, 0.4, -0.4], gid="range")
        if value is not None:
            axes.plot(scale.place(value), 0, "o", gid="point")
        return _svg(axes, "strip", label)


def bar(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """Shares of a whole, one after the other; it stretches, for nothing in it is round.

    Args:
        parts: style sheet class, share between 0 and 1.
    """
    with _sheet(_BAR) as axes:
        axes.set(xlim=(0, 1), ylim=(-0.5, 0.5))
        left = 0.0
        for name, share in parts:
            width = min(max(share, 0.0), 1.0)
            axes.barh(0, width, left=left, height=1, gid=name)
            left += width
        return _svg(axes, "stack", label, preserveAspectRatio="none")


def line(points: Sequence[tuple[float, float]], label: str) -> Markup:
    """A line through points (x, y) over zero; empty for fewer than two. Of very many, every n-th
    and the last."""
    if len(points) < 2:
        return Markup("")
    every = math.ceil(len(points) / _MAX_POINTS)
    points = [(x, _bounded(y)) for x, y in (*points[:-1:every], points[-1])]
    with _sheet(_LINE, framed=True) as axes:
        axes.margins(x=0)
        axes.plot(*zip(*points, strict=True), gid="line")
        axes.set_ylim(bottom=min(0.0, *(y for _, y in points)))
        return _svg(axes, "curve", label)


@dataclass(frozen=True, slots=True)
class Night:
    """A column of the history: a score with its interval, and whether its model was promoted."""

    label: str
    value: float | None
    interval: tuple[float, float] | None
    promoted: bool


def history(nights: Sequence[Night], label: str) -> Markup:
    """A column for each night, counted from the oldest, with its label as title: filled where
    promoted, hollow where not, a cross at the foot of a night without a score."""
    with _sheet(_HISTORY, framed=True) as axes:
        axes.set_xlim(0.5, len(nights) + 0.5)
        for x, night in enumerate(nights, 1):
            if night.value is None:
                foot = axes.get_xaxis_transform()
                axes.text(x, 0.02, "×", gid=f"missing {x}", ha="center", transform=foot)
                continue
            low, high = night.interval or (night.value, night.value)
            heights = [_bounded(value) for value in (low, night.value, high)]
            gid = f"{'promoted' if night.promoted else 'other'} {x}"
            axes.plot([x] * 3, heights, marker="o", markevery=[1], gid=gid)
        return _svg(axes, "history", label, [night.label for night in nights])


def _bounded(value: float) -> float:
    return min(max(value, -_LARGEST), _LARGEST)


@contextmanager
def _sheet(size: tuple[int, int], *, framed: bool = False) -> Iterator[Axes]:
    """Empty axes of a drawing, framed by a few ticks or not."""
    # It keeps a list of fonts below the user's home, or, with a warning, in a directory of this
    # process where a container lets it write none. A notebook names a backend that may be missing.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.pop("MPLBACKEND", None)
    instead = ", or take the numbers: selfalign report --json"
    with needing("a report's charts need matplotlib", "report", instead):
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the user or the directory changes no drawing
        matplotlib.rcParams.update({"svg.fonttype": "none", "font.size": 13})
        axes = _axes(size, framed=True) if framed else _bare_axes(size)
        try:
            yield axes
        finally:
            for artist in (*axes.lines, *axes.patches):
                artist.remove()


def _axes(size: tuple[int, int], *, framed: bool) -> Axes:
    from matplotlib.figure import Figure

    (width, height), (left, bottom, right, top) = size, _EDGES if framed else (0, 0, 0, 0)
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, frameon=False)
    inner = (width - left - right) / width, (height - bottom - top) / height
    axes = figure.add_axes((left / width, bottom / height, *inner), frameon=False)
    if not framed:
        axes.set_axis_off()
        return axes
    axes.tick_params(length=0, pad=8)
    axes.grid(axis="y")
    axes.locator_params(axis="y", nbins=5)
    axes.locator_params(axis="x", integer=True)  # steps and nights are counted
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
    return axes


@functools.cache
def _bare_axes(size: tuple[int, int]) -> Axes:
    """Of every strip or bar: a report has a hundred, and new axes take 30 ms."""
    return _axes(size, framed=False)


def _svg(
    axes: Axes, name: str, label: str, titles: Sequence[str] = (), **attributes: str
) -> Markup:
    """The drawing. A gid is a class and, where it counts from 1, a number of the titles."""
    text, figure = io.StringIO(), axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(text, format="svg", metadata=_NO_METADATA)
    drawn = ElementTree.fromstring(text.getvalue())
    svg = ElementTree.Element("svg", {"class": name, "viewBox": drawn.attrib["viewBox"]})
    svg.attrib |= {"role": "img", "aria-label": printable(label), **attributes}
    for group in drawn.iterfind(".//{*}g[@id]"):
        own, _, number = group.attrib["id"].partition(" ")
        parent = svg
        if "_" not in own:  # matplotlib counts what has no gid: line2d_3
            parent = ElementTree.SubElement(svg, "g", {"class": own})
            if number:
                ElementTree.SubElement(parent, "title").text = printable(titles[int(number) - 1])
        for mark in (each for way in _MARKS for each in group.findall(way)):
            parent.append(_kept(mark))
    return Markup(ElementTree.tostring(svg, encoding="unicode"))


_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))  # a date is never the same
_MARKS = ("{*}path", "{*}g/{*}use", "{*}text")  # in a group; <use> is of a marker


def _kept(mark: ElementTree.Element) -> ElementTree.Element:
    """What is kept of a shape or text, to a hundredth of a pixel."""
    found = {
        key: re.sub(r"-?\d+\.\d+", lambda x: f"{round(float(x[0]), 2):g}", " ".join(value.split()))
        for key, value in mark.attrib.items()
    }
    tag = mark.tag.rpartition("}")[2]
    if tag == "path":
        return ElementTree.Element(tag, d=found.get("d", ""))
    if tag == "use":  # every marker is round
        return ElementTree.Element("circle", cx=found["x"], cy=found["y"], r=f"{_RADIUS:g}")
    anchor = mark.attrib["style"].partition("text-anchor: ")[2].partition(";")[0]
    kept = ElementTree.Element(tag, {"x": found["x"], "y": found["y"], "text-anchor": anchor})
    kept.text = mark.text
    return kept
