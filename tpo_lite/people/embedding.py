"""Data inside an HTML page and in the JavaScript files beside it, such that no text in it can become markup or code.

Model output is untrusted: it may hold `</script>`, `<!--`, U+2028 or half of a surrogate pair. JSON whose `<`, `>`,
`&`, U+2028 and U+2029 are escaped holds none of these, and reads back as the same text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tpo_lite.files import well_formed

_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029\ufeff\x7f"}

LONGEST_TEXT = 50_000
"""Characters of one text that a report shows; the run's JSONL files hold all of it."""


def to_json(data: Any) -> str:
    r"""Return JSON that is safe in a `<script>` element and as a JavaScript expression.

    >>> to_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return well_formed(text).translate(_ESCAPES)


def in_page(data: Any) -> Markup:
    """Return the same for a template, marked as safe."""
    return Markup(to_json(data))


def clipped(text: str) -> str:
    """Cut a text that is too long for a report, and say so at its end."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}\n[cut here: {len(text) - LONGEST_TEXT:,} more characters are in the run folder]"


@dataclass(frozen=True)
class Pages:
    """Entries, each as JSON, divided into pages."""

    inline: list[str]
    """The pages that are part of the HTML file: the first ones, as far as they fit."""
    files: list[str]
    """The pages after them, each a file of its own."""
    page_of: list[int]
    """For each entry the number of its page, inline ones first."""

    def scripts(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the content of each file."""
        for number, page in enumerate(self.files, len(self.inline)):
            yield f"{number:04d}.js", f"tpoLitePage({number},{page});\n"


def paginate(entries: Sequence[str], inline_bytes: int, page_bytes: int) -> Pages:
    """Divide entries into pages of about `page_bytes` bytes, with at least one entry each, in their order.

    The first pages are inline, up to `inline_bytes` bytes in all.
    """
    pages: list[list[str]] = []
    page_of, size = [], page_bytes
    for entry in entries:
        weight = len(entry.encode())
        if size + weight > page_bytes:
            pages.append([])
            size = 0
        pages[-1].append(entry)
        size += weight
        page_of.append(len(pages) - 1)
    joined = [f"[{','.join(page)}]" for page in pages]
    fits = 0
    while fits < len(joined) and sum(len(page.encode()) for page in joined[: fits + 1]) <= inline_bytes:
        fits += 1
    return Pages(joined[:fits], joined[fits:], page_of)
