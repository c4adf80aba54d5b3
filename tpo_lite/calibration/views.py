"""A calibration report for people: tables and a reliability plot in text, and the plot as SVG."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tpo_lite.calibration.report import Bin, Reliability, Report
from tpo_lite.intervals import Share, percent

_COLUMNS = (
    ("pairs", "pairs"),
    ("accuracy", "accuracy"),
    ("accuracy_in_order", "in order"),
    ("accuracy_swapped", "swapped"),
    ("both_right", "both right"),
    ("more_right", "more right"),
    ("agreement", "agreement"),
    ("flip_rate", "flips"),
    ("first_slot_rate", "first slot"),
    ("unparsed", "unparsed"),
)


def as_data(whole: Report, groups: Mapping[str, Report]) -> dict[str, Any]:
    """Return the report on all pairs and those on their groups as plain data, for JSON."""
    return {
        "report": dataclasses.asdict(whole),
        "groups": {name: dataclasses.asdict(report) for name, report in groups.items()},
    }


def as_text(said: Sequence[str], whole: Report, groups: Mapping[str, Report]) -> str:
    """Return the lines `said`, the report, a table of groups if there are several, and a reliability plot if any."""
    sections = [said, report_lines(whole)]
    if len(groups) > 1:
        sections.append(group_lines(groups))
    if whole.reliability is not None:
        sections.append(reliability_lines(whole.reliability))
    return "\n\n".join("\n".join(section) for section in sections)


def report_lines(report: Report) -> list[str]:
    """Return a report as lines of name, value, 95 % interval and number counted; what has no data is left out."""
    rows = [
        ("accuracy (verdicts)", report.accuracy, "pairs"),
        ("  response 1 first", report.accuracy_in_order, "pairs"),
        ("  response 2 first", report.accuracy_swapped, "pairs"),
        ("right in both orders", report.both_right, "pairs"),
        ("more right than wrong", report.more_right, "pairs"),
        ("accuracy of mean P", report.soft_accuracy, "pairs"),
        ("positional agreement", report.agreement, "pairs"),
        ("flip rate", report.flip_rate, "pairs"),
        ("first-slot rate", report.first_slot_rate, "verdicts"),
        ("ties", report.ties, "verdicts"),
        ("unparsed", report.unparsed, "verdicts"),
    ]
    bias = report.length_bias
    if bias is not None:
        rows += [
            ("longer wins", bias.longer_wins, "verdicts"),
            ("  when it is better", bias.longer_wins_when_better, "verdicts"),
            ("  when it is worse", bias.longer_wins_when_worse, "verdicts"),
        ]
    lines = [
        f"{name:<23}{percent(found.value):>8}   [{100 * found.low:5.1f}, {100 * found.high:5.1f}]   {found.n} {unit}"
        for name, found, unit in rows
        if found.n
    ]
    if bias is not None and bias.balanced is not None:
        lines.append(
            f"{'  at equal quality':<23}{100 * bias.balanced:>6.1f} %   (mean of these two; 50 % is no length bias)"
        )
    if report.reliability is not None:
        lines.append(f"{'ECE of P(A)':<23}{report.reliability.ece:>8.3f}")
    if report.overlong:
        lines.append(f"{'too long, left out':<23}{report.overlong:>8} of {report.pairs} pairs")
    return lines


def group_lines(reports: Mapping[str, Report]) -> list[str]:
    """Return a table with one line per group."""
    width = max(len("group"), *map(len, reports))
    lines = [f"{'group':<{width}}" + "".join(f"{heading:>12}" for _, heading in _COLUMNS)]
    for name, found in reports.items():
        cells = [getattr(found, field) for field, _ in _COLUMNS]
        lines.append(
            f"{name:<{width}}" + "".join(f"{percent(c.value) if isinstance(c, Share) else c:>12}" for c in cells)
        )
    return lines


def reliability_lines(reliability: Reliability, width: int = 50) -> list[str]:
    """Return a reliability plot: per bin of P(A) a bar of how often A was better, and | at the mean of P(A)."""
    lines = [f"{'P(A)':<10}{'A was better (bar), as said (|)':<{width + 3}}verdicts"]
    for found in reliability.bins:
        bar = _bar(found, width)
        rate = found.a_better
        lines.append(f"{found.low:.1f}-{found.high:.1f}   {bar}  {percent(rate.value):>7}{rate.n:>8}".rstrip())
    return lines


def _bar(found: Bin, width: int) -> str:
    if found.mean_p is None or found.a_better.value is None:
        return " " * (width + 1)
    cells = list(("#" * round(width * found.a_better.value)).ljust(width + 1))
    cells[round(width * found.mean_p)] = "|"
    return "".join(cells)


_SIDE, _LEFT, _TOP = 400, 60, 50


def _x(value: float) -> str:
    return f"{_LEFT + _SIDE * value:.1f}"


def _y(value: float) -> str:
    return f"{_TOP + _SIDE * (1 - value):.1f}"


def reliability_svg(reliability: Reliability, title: str) -> str:
    """Return a reliability plot as an SVG file: for each bin the mean of P(A) against how often A was better.

    Bars from the bottom are the verdicts in each bin, as a share of the fullest one. Whiskers are 95 % intervals. The
    diagonal is a judge that is right as often as it says.
    """
    verdicts = sum(found.a_better.n for found in reliability.bins)
    middle = _TOP + _SIDE / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _SIDE + 30}" height="{_TOP + _SIDE + 60}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        # Letters are about half as wide as high: a long title gets smaller ones.
        f'<text x="{_x(0)}" y="20" font-size="{min(14, 800 // len(title))}">{_escape(title)}</text>',
        f'<text x="{_x(0)}" y="38">ECE {reliability.ece:.3f}, {verdicts} verdicts</text>',
        *_grid(),
        *_bars(reliability),
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#888" stroke-dasharray="4"/>',
        *_curve(reliability),
        f'<text x="{_x(0.5)}" y="{_TOP + _SIDE + 42}" text-anchor="middle">P(A), as the judge says</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">A was better</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid() -> list[str]:
    """Draw lines and labels at every fifth."""
    parts = []
    for at in (tenth / 10 for tenth in range(0, 11, 2)):
        parts += [
            f'<line x1="{_x(at)}" y1="{_y(0)}" x2="{_x(at)}" y2="{_y(1)}" stroke="#ddd"/>',
            f'<line x1="{_x(0)}" y1="{_y(at)}" x2="{_x(1)}" y2="{_y(at)}" stroke="#ddd"/>',
            f'<text x="{_x(at)}" y="{_TOP + _SIDE + 18}" text-anchor="middle">{at:.1f}</text>',
            f'<text x="{_LEFT - 8}" y="{_y(at)}" dy="4" text-anchor="end">{at:.1f}</text>',
        ]
    return parts


def _bars(reliability: Reliability) -> list[str]:
    """Draw the number of verdicts in each bin."""
    fullest = max(found.a_better.n for found in reliability.bins)
    parts = []
    for found in reliability.bins:
        height = 0.2 * _SIDE * found.a_better.n / fullest
        parts.append(
            f'<rect x="{_x(found.low)}" y="{_TOP + _SIDE - height:.1f}" '
            f'width="{_SIDE * (found.high - found.low):.1f}" '
            f'height="{height:.1f}" fill="#c9d7ea" stroke="#fff"/>'
        )
    return parts


def _curve(reliability: Reliability) -> list[str]:
    """Draw how often A was better in each bin that has verdicts, with whiskers."""
    filled = [
        (_x(found.mean_p), _y(found.a_better.value), found.a_better)
        for found in reliability.bins
        if found.mean_p is not None and found.a_better.value is not None
    ]
    points = " ".join(f"{x},{y}" for x, y, _ in filled)
    parts = [f'<polyline points="{points}" fill="none" stroke="#1f4e9c" stroke-width="2"/>']
    for x, y, rate in filled:
        parts += [
            f'<line x1="{x}" y1="{_y(rate.low)}" x2="{x}" y2="{_y(rate.high)}" stroke="#1f4e9c"/>',
            f'<circle cx="{x}" cy="{y}" r="4" fill="#1f4e9c"/>',
        ]
    return parts


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
