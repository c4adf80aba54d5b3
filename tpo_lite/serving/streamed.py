"""Thought and response told apart while an output still comes, as `tpo_lite.thoughts.parse` does when it is whole.

Works on text; knows nothing of tokens or models. What may still turn out to be part of a marker, of a stop, or of
Markdown around a marker is held back until that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tpo_lite.thoughts import ThoughtStyle, split_at

_MARKDOWN = "*_#"


class Parts(NamedTuple):
    """What has become known of an output since the last time."""

    thought: str
    response: str


class Streamed:
    """One output that comes in pieces.

    The responses that `feed` and `end` return, put together, are what `parse` makes of the whole output, up to the
    first of `stops` in it. Stops in a thought do not count. The thought is the text before the response marker. It
    differs from that of `parse` in two rare cases, since what is out cannot be taken back: where the thought marker
    does not come first, and where emphasis begins in a thought and ends after the marker.

    Without a style, the output is the response as it is, white space included.
    """

    def __init__(self, style: ThoughtStyle | None, stops: Sequence[str] = ()):
        self._style, self._stops = style, [stop for stop in stops if stop]
        self._marker = None if style is None else style.response_marker
        self._text, self._out = "", Parts("", "")
        self._before = ""
        """The last paragraph of the thought, which decides what Markdown belongs to the marker."""
        self.thinking = self._marker is not None
        """Whether the response has not begun."""
        self.stopped = False
        """Whether a stop has come; then nothing that follows counts."""

    def feed(self, piece: str) -> Parts:
        """Add a piece of the output, and return what is now known."""
        self._text += piece
        return self._more(last=False)

    def end(self) -> Parts:
        """Return what was held back: there is no more output."""
        return self._more(last=True)

    def _more(self, last: bool) -> Parts:
        thought = ""
        if self.thinking:
            thought = self._thought(last)
        return Parts(thought, "" if self.thinking or self.stopped else self._response(last))

    def _thought(self, last: bool) -> str:
        """Return what is new of the thought. If the marker has come, `_text` is what follows it from then on."""
        assert self._marker is not None
        before, found, after = self._text.partition(self._marker)
        if found:
            self.thinking = False
            self._text, self._before = after, before[max(0, before.rfind("\n\n")) :]
            before, _ = split_at(before + self._marker, self._marker)
        whole = self._without_opening(before, last or bool(found))
        if found or last:
            return self._new(whole.strip(), thought=True)
        whole = whole[: len(whole) - _overlap(whole, [self._marker])]
        return self._new(_settled(whole.lstrip()), thought=True)

    def _without_opening(self, thought: str, whole: bool) -> str:
        """Return a thought without the thought marker at its beginning; empty while that is still coming."""
        opening = self._style.thought_marker if self._style else None
        if opening is None:
            return thought
        start = thought[len(thought) - len(_settled(thought[::-1])) :]
        if start.startswith(opening):
            if not whole and not _settled(start.removeprefix(opening)):
                return ""
            return split_at(thought, opening)[1]
        return "" if not whole and opening.startswith(start) else thought

    def _response(self, last: bool) -> str:
        """Return what is new of the response."""
        whole = self._text
        if self._marker is not None:
            _, whole = split_at(self._before + self._marker + whole, self._marker)
        elif self._style is not None:
            whole = whole.strip()
        ends = [at for stop in self._stops if (at := whole.find(stop)) >= 0]
        if ends:
            self.stopped, whole = True, whole[: min(ends)]
        elif not last:
            whole = whole[: len(whole) - _overlap(whole, self._stops)]
            if self._style is not None:
                whole = _settled(whole)
        return self._new(whole, thought=False)

    def _new(self, whole: str, thought: bool) -> str:
        """Return what `whole` has beyond what is out already, and note that it is out."""
        out = self._out.thought if thought else self._out.response
        if not whole.startswith(out):
            return ""  # emphasis that was out belongs to a marker; in a response this cannot be
        self._out = self._out._replace(**{"thought" if thought else "response": whole})
        return whole[len(out) :]


def _settled(text: str) -> str:
    """Return a text without the white space and Markdown at its end, which may go with what follows."""
    while (shorter := text.rstrip().rstrip(_MARKDOWN)) != text:
        text = shorter
    return text


def _overlap(text: str, markers: Sequence[str]) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of a marker.

    >>> _overlap("It is <", ["<R>"]), _overlap("It is <R", ["<R>", "is <R>"]), _overlap("It is <R>", ["<R>"])
    (1, 5, 0)
    """
    for length in range(min(len(text), max(map(len, markers), default=0)), 0, -1):
        if any(length < len(marker) and text.endswith(marker[:length]) for marker in markers):
            return length
    return 0
