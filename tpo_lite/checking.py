"""Whether a response gives the expected answer: used to measure, never to judge or train.

Plain string matching; knows nothing of tasks or models.
"""

from __future__ import annotations

import re

PHRASE = re.compile(r".*\banswer is\b:?", re.DOTALL | re.IGNORECASE)


def final_answer(response: str) -> str:
    """Return what a response answers, normalized.

    That is what follows the last "answer is" up to the end of its sentence or line; without that phrase, the whole
    response. Normalized: lower case, no punctuation, single spaces, no leading article.

    >>> final_answer("The answer is 4. No: the answer is **The Moon**. Hope this helps!")
    'moon'
    """
    phrase = PHRASE.match(response)
    if phrase:
        response = re.split(r"[.!?](?:\s|$)|\n", response[phrase.end() :].lstrip(), maxsplit=1)[0]
    # A minus sign or a point inside a number means something; other punctuation does not.
    plain = re.sub(r"(?<=\d),(?=\d)|(?!(?<=\d)\.(?=\d)|-(?=\d))[^\w\s]|_", "", response.casefold())
    return re.sub(r"^(?:the|an?) (?=\S)", "", " ".join(plain.split()))


def is_right(response: str, answer: str) -> bool:
    """Return whether the final answer of `response` is `answer`, both normalized; an empty one never is."""
    given = final_answer(response)
    return given != "" and given == final_answer(answer)
