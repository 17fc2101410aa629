"""Where charts put their marks, read back from the SVG as values."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from selfalign.errors import ConfigurationError
from selfalign.report.charts import Night, Scale, bar, history, line, strip

NAN, HUGE = float("nan"), 1.7e308
HOSTILE = "<script>alert('1')</script>\x1b[31m\u202e\"$x^2$"
CLOSE = 1e-3  # of a value: coordinates are to a hundredth of a pixel
WIDTH, MARGIN = 320, 0.02  # of a strip


def marks(svg: str, name: str) -> list[Element]:
    """Groups of a class."""
    return ElementTree.fromstring(svg).findall(f"g[@class='{name}']")


def corners(drawn: Element) -> list[tuple[float, float]]:
    """Of a path, or of the one in a group, in pixels from the upper left."""
    path = drawn if drawn.tag == "path" else drawn.findall("path")[0]
    numbers = list(map(float, re.findall(r"-?[\d.]+", path.attrib["d"])))
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def centre(group: Element) -> tuple[float, float]:
    (circle,) = group.findall("circle")
    return float(circle.attrib["cx"]), float(circle.attrib["cy"])


def on(scale: Scale, x: float) -> float:
    """The value at a pixel of a strip."""
    share = x / WIDTH * (1 + 2 * MARGIN) - MARGIN
    return scale.low + share * (scale.high - scale.low)


def rulers(svg: str) -> tuple[Scale, Scale]:
    """What a pixel means across and up, as the numbers at the ticks say."""
    drawn = ElementTree.fromstring(svg)
    texts = [(t.attrib, float(str(t.text).replace("−", "-"))) for t in drawn.findall("text")]
    across = [(float(at["x"]), value) for at, value in texts if at["text-anchor"] == "middle"]
    up = [value for at, value in texts if at["text-anchor"] == "end"]
    heights = [corners(path)[0][1] for path in drawn.findall("path")]
    return through(across), through(list(zip(heights, up, strict=True)))


def through(points: list[tuple[float, float]]) -> Scale:
    """Values at pixel 0 and pixel 1, from the first and the last tick; those between agree."""
    (a, first), (b, last) = points[0], points[-1]
    slope = (last - first) / (b - a)
    for pixel, value in points:
        assert first + slope * (pixel - a) == pytest.approx(value, abs=CLOSE * abs(last - first))
    return Scale(first - slope * a, first - slope * a + slope)


def at(ruler: Scale, pixel: float) -> float:
    return ruler.low + pixel * (ruler.high - ruler.low)


def test_a_strip_marks_values_where_they_are() -> None:
    scale = Scale(-0.4, 0.6)
    svg = strip(scale, "x", 0.25, (-0.1, 0.5), (-0.2, None))
    (point,), (interval,), (zero,) = (marks(svg, name) for name in ("point", "range", "zero"))
    assert on(scale, centre(point)[0]) == pytest.approx(0.25, abs=CLOSE)
    assert centre(point)[1] == 11
    ends = [on(scale, x) for x, _ in corners(interval)]
    assert (min(ends), max(ends)) == pytest.approx((-0.1, 0.5), abs=CLOSE)
    assert on(scale, corners(zero)[0][0]) == pytest.approx(0, abs=CLOSE)
    (allowed,), (margin,) = marks(svg, "allowed"), marks(svg, "margin")
    assert on(scale, min(x for x, _ in corners(allowed))) == pytest.approx(-0.2, abs=CLOSE)
    assert max(x for x, _ in corners(allowed)) == WIDTH  # no bound: to the edge
    assert on(scale, corners(margin)[0][0]) == pytest.approx(-0.2, abs=CLOSE)


def test_a_strip_draws_what_is_beyond_an_end_on_it_and_nothing_for_what_is_not_known() -> None:
    scale = Scale(0, 1)
    svg = strip(scale, "x", 7.0, (-HUGE, float("inf")), (None, 0.5))
    assert on(scale, centre(marks(svg, "point")[0])[0]) == pytest.approx(1, abs=CLOSE)
    ends = [on(scale, x) for x, _ in corners(marks(svg, "range")[0])]
    assert (min(ends), max(ends)) == pytest.approx((0, 1), abs=CLOSE)
    assert min(x for x, _ in corners(marks(svg, "allowed")[0])) == 0
    assert len(marks(svg, "margin")) == 1
    assert marks(svg, "zero") == []
    assert len(ElementTree.fromstring(strip(scale, "x", None))) == 0
    lost = marks(strip(scale, "x", NAN, (NAN, NAN), (NAN, None)), "point")
    assert [len(group) for group in lost] == [0]


def test_a_bar_puts_its_parts_one_after_the_other() -> None:
    drawn = ElementTree.fromstring(bar([("kept", 0.6), ("lost", 0.3), ("lost", 0.1)], "x"))
    spans = []
    for group in drawn:
        xs = [x / WIDTH for x, _ in corners(group)]
        spans.append((group.attrib["class"], min(xs), max(xs)))
        assert {y for _, y in corners(group)} == {0, 16}
    assert [name for name, *_ in spans] == ["kept", "lost", "lost"]
    assert [end for _, *ends in spans for end in ends] == pytest.approx(
        [0, 0.6, 0.6, 0.9, 0.9, 1], abs=CLOSE
    )


def test_a_line_passes_through_its_points_above_zero() -> None:
    points = [(10, 2.5), (20, 1.25), (35, 2.0), (50, 0.5)]
    svg = line(points, "x")
    across, up = rulers(svg)
    drawn = [(at(across, x), at(up, y)) for x, y in corners(marks(svg, "line")[0])]
    assert drawn == [pytest.approx(point, abs=0.01) for point in points]
    assert at(up, 160) == pytest.approx(0, abs=CLOSE)  # the foot of the axes


def test_a_long_line_is_short_and_keeps_its_ends() -> None:
    svg = line([(step, 3 + step % 2) for step in range(20_001)], "x")
    assert len(svg) < 12_000
    across, _ = rulers(svg)
    drawn = corners(marks(svg, "line")[0])
    assert [at(across, drawn[end][0]) for end in (0, -1)] == pytest.approx([0, 20_000], abs=40)
    assert line([(1, 2.0)], "x") == ""


@pytest.mark.parametrize("loss", [NAN, float("inf"), HUGE, 0.0], ids=str)
def test_a_loss_without_bounds_is_drawn_all_the_same(loss: float) -> None:
    for other in (1.0, -loss):
        assert len(marks(line([(1, loss), (2, other)], "x"), "line")) == 1
        nights = [Night("x", value, (value, value), False) for value in (loss, other)]
        assert len(marks(history(nights, "x"), "other")) == 2


def test_a_night_is_a_column_with_its_score_interval_and_name() -> None:
    nights = [
        Night("first: Promoted, 0.750", 0.75, (0.6, 0.85), promoted=True),
        Night("second: Failed", None, None, promoted=False),
        Night("third: NotPromoted, 0.200", 0.2, None, promoted=False),
    ]
    svg = history(nights, "x")
    across, up = rulers(svg)
    (first,), (second,), (third,) = (marks(svg, name) for name in ("promoted", "missing", "other"))
    x, y = centre(first)
    assert (at(across, x), at(up, y)) == pytest.approx((1, 0.75), abs=CLOSE)
    heights = [at(up, y) for _, y in corners(first)]
    assert (min(heights), max(heights)) == pytest.approx((0.6, 0.85), abs=CLOSE)
    x, y = centre(third)
    assert (at(across, x), at(up, y)) == pytest.approx((3, 0.2), abs=CLOSE)
    (cross,) = second.findall("text")
    assert cross.text == "×"
    assert at(across, float(cross.attrib["x"])) == pytest.approx(2, abs=CLOSE)
    titles = [group.findtext("title") for group in (first, second, third)]
    assert titles == [night.label for night in nights]


def every_chart(label: str) -> list[str]:
    return [
        strip(Scale(-1, 1), label, 0.1, (0, 0.2), (0, None)),
        bar([("kept", 0.5)], label),
        line([(1, 2.0), (2, 1.0)], label),
        history([Night(label, 0.5, (0.4, 0.6), True), Night(label, None, None, False)], label),
    ]


def test_what_a_chart_is_told_is_text_and_only_shapes_stand_in_the_page() -> None:
    for svg in every_chart(HOSTILE):
        assert not re.search(r"<script|\x1b|\u202e|<!|<\?|xmlns", svg)
        drawn = ElementTree.fromstring(svg)
        said = drawn.attrib["aria-label"]
        assert said == "<script>alert('1')</script>\\x1b[31m\\u202e\"$x^2$"
        assert drawn.attrib["role"] == "img"
        assert all(title.text == said for title in drawn.iter("title"))
        for element in drawn.iter():
            assert element.tag in {"svg", "g", "path", "circle", "text", "title"}
            assert not set(element.attrib) & {"id", "style", "fill", "stroke", "clip-path"}


def test_a_chart_is_the_same_each_time_whatever_was_drawn_before_it() -> None:
    import matplotlib

    before = every_chart("x")
    with matplotlib.rc_context({"font.size": 40, "text.usetex": True, "svg.fonttype": "path"}):
        assert every_chart("x") == before


def test_a_container_without_a_home_draws_and_says_nothing(tmp_path: Path) -> None:
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("XDG")},
        "HOME": "/proc", "TMPDIR": str(tmp_path), "MPLBACKEND": "module://none.such",
    }  # fmt: skip
    environment.pop("MPLCONFIGDIR", None)
    program = "from selfalign.report.charts import line; print(line([(1, 2.0), (2, 1.0)], 'x'))"
    ran = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert ran.stdout == line([(1, 2.0), (2, 1.0)], "x") + "\n"
    assert ran.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match="matplotlib, which is not installed") as caught:
        bar([("kept", 0.5)], "half")
    assert "selfalign[report]" in (caught.value.remedy or "")
