"""Draws the curves of a report as SVG (matplotlib), in colors that the page's style sheet gives.

matplotlib draws with stand-in colors. Then each becomes a CSS class, so that one drawing suits a light page, a dark one
and paper; and style attributes become presentation attributes, since the page's content security policy allows no
inline style.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from tpo_lite.people.curves import Curve, Line, Look, Unit
from tpo_lite.people.words import signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SVG = "http://www.w3.org/2000/svg"
SHADES = 6
"""Shades of stacked bars; the style sheet has as many for each arm."""

_COLORS = {"#010101": "ink", "#020202": "quiet", "#030303": "grid"}
_COLORS |= {"#040404": "thinking", "#050505": "direct", "#060606": "paper"}
_COLORS |= {f"#1{shade}0000": f"thinking-{shade}" for shade in range(SHADES)}
_COLORS |= {f"#2{shade}0000": f"direct-{shade}" for shade in range(SHADES)}
_STAND_IN = {name: color for color, name in _COLORS.items()}

WIDTH, HEIGHT = 300, 180
"""In the SVG's own units; the page scales them."""
_POINT = 72.0

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "tpo_lite",
    "font.size": 11.5,
    "axes.prop_cycle": "cycler('color', ['#010101'])",
    "axes.edgecolor": _STAND_IN["quiet"],
    "axes.labelcolor": _STAND_IN["quiet"],
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": _STAND_IN["quiet"],
    "xtick.labelcolor": _STAND_IN["ink"],
    "ytick.color": _STAND_IN["quiet"],
    "ytick.labelcolor": _STAND_IN["ink"],
    "ytick.major.size": 0,
    "xtick.major.size": 3,
    "xtick.major.width": 0.7,
}
_WIDTHS = {"thinking": 2.0, "direct": 1.7, "paper": 1.2}
_MARKERS = {"thinking": "o", "direct": "s"}


def draw(curve: Curve) -> Markup:
    """Return a curve as an SVG element for a page."""
    with _figure(WIDTH, HEIGHT, 46) as (figure, axes):
        _frame(axes, curve)
        for line in curve.lines:
            _line(axes, line, curve.markers)
        _stacks(axes, curve)
        _axes(axes, curve)
        return _svg(figure, curve.name, f"{curve.title}. {curve.note}")


def latest(curve: Curve) -> list[tuple[Look, str]]:
    """Return the last value of each arm's line, as text."""
    last = [(line.look, line.y[-1]) for line in curve.lines if line.look != "paper"]
    return [(look, _figure_text(value, curve.unit)) for look, value in last]


def _figure_text(value: float, unit: Unit) -> str:
    if unit == "percent":
        return f"{100 * value:.{1 if abs(value) >= 0.01 else 2}f} %"
    form = ".1e" if 0 < abs(value) < 0.001 else ".1f" if abs(value) >= 1 else ".3f"
    return signed(value, form)


def shades(curve: Curve) -> list[tuple[str, list[str]]]:
    """Return the parts of stacked bars, each with its shades as CSS classes."""
    looks = list(dict.fromkeys(stack.look for stack in curve.stacks))
    names = _parts(curve)
    return [(name, [f"{look}-{names.index(name) % SHADES}" for look in looks]) for name in names]


def _parts(curve: Curve) -> list[str]:
    return list(dict.fromkeys(name for stack in curve.stacks for name in stack.parts))


@dataclass(frozen=True)
class Bars:
    """Horizontal bars, one per phase, for `draw_bars`."""

    name: str
    labels: list[str]
    values: list[float]
    planned: list[float | None]
    """Where a small mark stands beside a bar."""
    line: float | None
    """Where a dashed line stands across all bars, if it is near enough."""
    form: Callable[[float], str]
    """How values are written."""
    steps: Sequence[float]
    """Distances that labels may have; the smallest that leaves at most six is taken."""
    label: str
    """What the chart shows, for who cannot see it."""


def draw_bars(bars: Bars) -> Markup:
    """Return horizontal bars as an SVG element for a page."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    with _figure(1.2 * WIDTH, 30 + 19 * len(bars.labels), 60) as (figure, axes):
        rows = list(range(len(bars.labels)))
        axes.grid(axis="x", color=_STAND_IN["grid"], linewidth=0.7)
        axes.barh(rows, bars.values, height=0.6, color=_STAND_IN["thinking-1"])
        for row, planned in zip(rows, bars.planned, strict=True):
            if planned is not None:
                axes.plot([planned, planned], [row - 0.42, row + 0.42], color=_STAND_IN["ink"], linewidth=1.4)
        if bars.line is not None:
            axes.axvline(bars.line, color=_STAND_IN["direct"], linewidth=1.3, linestyle=(0, (4, 3)))
        axes.set_yticks(rows, bars.labels)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        _, longest = axes.get_xlim()
        axes.xaxis.set_major_locator(
            MultipleLocator(next((step for step in bars.steps if 5 * step >= longest), longest))
        )
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: bars.form(value)))
        axes.spines["bottom"].set_visible(False)
        return _svg(figure, bars.name, bars.label)


@contextmanager
def _figure(width: float, height: float, left: float) -> Iterator[tuple[Any, Axes]]:
    """Yield a figure of this size and its axes, with `left` units for the labels of the y axis."""
    # Imported here: it takes half a second, which only a report needs.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(width / _POINT, height / _POINT))
        figure.patch.set_visible(False)
        # Fixed margins: a layout that measures its labels takes several times as long as the drawing.
        right, top, bottom = 8, 8, 22
        axes = figure.add_axes((left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height))
        axes.patch.set_visible(False)
        yield figure, axes


def _frame(axes: Axes, curve: Curve) -> None:
    axes.grid(axis="y", color=_STAND_IN["grid"], linewidth=0.7)
    for at in curve.dividers:
        axes.axvline(at, color=_STAND_IN["quiet"], linewidth=0.7, linestyle=(0, (1, 2)))
    if curve.baseline is not None:
        axes.axhline(curve.baseline, color=_STAND_IN["quiet"], linewidth=0.9)


def _line(axes: Axes, line: Line, markers: bool) -> None:
    color = _STAND_IN[line.look]
    axes.plot(
        line.x,
        line.y,
        color=color,
        linewidth=_WIDTHS[line.look] if markers else 1.3,
        linestyle=(0, (4, 3)) if line.look == "paper" else "solid",
        marker=_MARKERS.get(line.look) if markers else None,
        markersize=4.5,
        solid_joinstyle="round",
    )
    if line.low is not None and line.high is not None:
        below = [max(0.0, y - low) for y, low in zip(line.y, line.low, strict=True)]
        above = [max(0.0, high - y) for y, high in zip(line.y, line.high, strict=True)]
        axes.errorbar(line.x, line.y, yerr=[below, above], fmt="none", ecolor=color, elinewidth=1.0, capsize=2.5)


def _stacks(axes: Axes, curve: Curve) -> None:
    """Draw stacked bars; those of two arms stand side by side."""
    looks = list(dict.fromkeys(stack.look for stack in curve.stacks))
    names = _parts(curve)
    width = 0.7 / max(1, len(looks))
    for stack in curve.stacks:
        x = stack.x + (looks.index(stack.look) - (len(looks) - 1) / 2) * width
        bottom = 0.0
        for name, height in stack.parts.items():
            color = _STAND_IN[f"{stack.look}-{names.index(name) % SHADES}"]
            axes.bar(x, height, width * 0.9, bottom=bottom, color=color)
            bottom += height


def _axes(axes: Axes, curve: Curve) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    if curve.least is not None:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, curve.least[0]) if curve.least[0] else 0, max(high, curve.least[1]))
    if curve.unit == "percent":
        low, high = axes.get_ylim()
        digits = 0 if high - low > 0.04 else 1 if high - low > 0.004 else 2
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.{digits}f} %"))
    elif axes.get_ylim()[1] < 0.01:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}" if value else "0"))
    if curve.ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        return
    every = -(-len(curve.ticks) // 12)  # at most a dozen labels
    axes.set_xticks([x for x, _ in curve.ticks[::every]], [label for _, label in curve.ticks[::every]])
    axes.set_xlim(curve.ticks[0][0] - 0.5, curve.ticks[-1][0] + 0.5)


def _svg(figure: Any, name: str, label: str) -> Markup:
    """Return a figure as an SVG element without style attributes, metadata, and ids that nothing refers to."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ElementTree.fromstring(file.getvalue())
    _remove(root, "metadata", "style")
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w-]+)", text))
    for element in root.iter():
        element.tag = element.tag.removeprefix(f"{{{SVG}}}")
        element.tail = None
        element.text = element.text if element.tag == "text" else None
        _restyle(element, name, used)
    viewbox = root.get("viewBox", f"0 0 {WIDTH} {HEIGHT}")
    root.attrib.clear()
    root.attrib.update({"viewBox": viewbox, "role": "img", "aria-label": label, "class": "chart"})
    return Markup(ElementTree.tostring(root, encoding="unicode", short_empty_elements=True))


def _remove(root: ElementTree.Element, *names: str) -> None:
    unwanted = {f"{{{SVG}}}{name}" for name in names}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in unwanted]:
            parent.remove(child)


def _restyle(element: ElementTree.Element, name: str, used: set[str]) -> None:
    """Move an element's style into attributes and classes, and make its ids and references the page's own."""
    classes = []
    declarations = [part.partition(":") for part in element.attrib.pop("style", "").split(";") if part.strip()]
    for key, _, value in declarations:
        key, value = key.strip(), value.strip()
        if key in ("fill", "stroke") and value in _COLORS:
            classes.append(f"{key}-{_COLORS[value]}")
        elif key not in ("font-family", "stroke-miterlimit"):
            element.set(key, value)
    if classes:
        element.set("class", " ".join(classes))
    for key, value in list(element.attrib.items()):
        plain = key.rpartition("}")[2]
        if value.startswith("rotate(-0 "):
            del element.attrib[key]
        elif plain == "id":
            del element.attrib[key]
            if value in used:
                element.set("id", f"{name}-{value}")
        elif plain == "href":
            del element.attrib[key]
            element.set("href", f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
