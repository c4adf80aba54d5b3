"""A calibration report for people: tables and a reliability plot in text, and the plot as SVG."""

from __future__ import annotations

from collections.abc import Mapping

from tpo_lite.calibration.report import Bin, Reliability, Report
from tpo_lite.intervals import Share

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


def percent(found: Share) -> str:
    """A share in per cent, one decimal; "-" where nothing was counted."""
    return "-" if found.value is None else f"{100 * found.value:.1f} %"


def report_lines(report: Report) -> list[str]:
    """A report as lines of name, value, 95 % interval and number counted; what has no data is left out."""
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
        f"{name:<23}{percent(found):>8}   [{100 * found.low:5.1f}, {100 * found.high:5.1f}]   {found.n} {unit}"
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
    """A table with one line a group."""
    width = max(len("group"), *map(len, reports))
    lines = [f"{'group':<{width}}" + "".join(f"{heading:>12}" for _, heading in _COLUMNS)]
    for name, found in reports.items():
        cells = [getattr(found, field) for field, _ in _COLUMNS]
        lines.append(f"{name:<{width}}" + "".join(f"{percent(c) if isinstance(c, Share) else c:>12}" for c in cells))
    return lines


def reliability_lines(reliability: Reliability, width: int = 50) -> list[str]:
    """A reliability plot: a row a bin of P(A), a bar of how often A was better, and | at the mean of P(A)."""
    lines = [f"{'P(A)':<10}{'A was better (bar), as said (|)':<{width + 3}}verdicts"]
    for found in reliability.bins:
        bar = _bar(found, width)
        lines.append(
            f"{found.low:.1f}-{found.high:.1f}   {bar}  {percent(found.a_better):>7}{found.a_better.n:>8}".rstrip()
        )
    return lines


def _bar(found: Bin, width: int) -> str:
    if found.mean_p is None:
        return " " * (width + 1)
    cells = list(("#" * round(width * found.a_better.value)).ljust(width + 1))
    cells[round(width * found.mean_p)] = "|"
    return "".join(cells)


_SIDE, _LEFT, _TOP = 400, 60, 50


def reliability_svg(reliability: Reliability, title: str) -> str:
    """A reliability plot as an SVG file: for each bin the mean of P(A) against how often A was better.

    Bars from the bottom are the verdicts in each bin, as a share of the fullest one; whiskers are 95 %
    intervals; the diagonal is a judge that is right as often as it says.
    """

    def x(value: float) -> str:
        return f"{_LEFT + _SIDE * value:.1f}"

    def y(value: float) -> str:
        return f"{_TOP + _SIDE * (1 - value):.1f}"

    verdicts = sum(found.a_better.n for found in reliability.bins)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _SIDE + 30}" height="{_TOP + _SIDE + 60}" '
        'font-family="sans-serif" font-size="12" fill="#222">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        # Letters are about half as wide as high: a long title gets smaller ones.
        f'<text x="{x(0)}" y="20" font-size="{min(14, 800 // len(title))}">{_escape(title)}</text>',
        f'<text x="{x(0)}" y="38">ECE {reliability.ece:.3f}, {verdicts} verdicts</text>',
    ]
    for tenth in range(0, 11, 2):
        at = tenth / 10
        parts += [
            f'<line x1="{x(at)}" y1="{y(0)}" x2="{x(at)}" y2="{y(1)}" stroke="#ddd"/>',
            f'<line x1="{x(0)}" y1="{y(at)}" x2="{x(1)}" y2="{y(at)}" stroke="#ddd"/>',
            f'<text x="{x(at)}" y="{_TOP + _SIDE + 18}" text-anchor="middle">{at:.1f}</text>',
            f'<text x="{_LEFT - 8}" y="{y(at)}" dy="4" text-anchor="end">{at:.1f}</text>',
        ]
    fullest = max(found.a_better.n for found in reliability.bins)
    for found in reliability.bins:
        height = 0.2 * _SIDE * found.a_better.n / fullest
        parts.append(
            f'<rect x="{x(found.low)}" y="{_TOP + _SIDE - height:.1f}" width="{_SIDE * (found.high - found.low):.1f}" '
            f'height="{height:.1f}" fill="#c9d7ea" stroke="#fff"/>'
        )
    parts.append(f'<line x1="{x(0)}" y1="{y(0)}" x2="{x(1)}" y2="{y(1)}" stroke="#888" stroke-dasharray="4"/>')
    filled = [found for found in reliability.bins if found.mean_p is not None]
    points = " ".join(f"{x(found.mean_p)},{y(found.a_better.value)}" for found in filled)
    parts.append(f'<polyline points="{points}" fill="none" stroke="#1f4e9c" stroke-width="2"/>')
    for found in filled:
        at, rate = x(found.mean_p), found.a_better
        parts += [
            f'<line x1="{at}" y1="{y(rate.low)}" x2="{at}" y2="{y(rate.high)}" stroke="#1f4e9c"/>',
            f'<circle cx="{at}" cy="{y(rate.value)}" r="4" fill="#1f4e9c"/>',
        ]
    middle = _TOP + _SIDE / 2
    parts += [
        f'<text x="{x(0.5)}" y="{_TOP + _SIDE + 42}" text-anchor="middle">P(A), as the judge says</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">A was better</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
