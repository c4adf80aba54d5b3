"""Texts in JSON, in HTML and in JavaScript files."""

import json
import re

import pytest

from tests.helpers.hostile import HALVES, HOSTILE
from tpo_lite.people.embedding import LONGEST_TEXT, clipped, paginate, to_json


@pytest.mark.parametrize("text", [*HOSTILE, HALVES])
def test_json_holds_no_markup_and_reads_back_as_the_same_text(text):
    made = to_json({"text": text, text: 1})
    assert re.search("[<>&\u2028\u2029\ufeff\x00-\x1f\x7f]", made) is None
    made.encode()  # no half of a surrogate pair is left
    same = re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    assert json.loads(made) == {"text": same, same: 1}


def test_a_number_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        to_json(float("nan"))


def test_a_long_text_is_cut_and_says_how_much_is_missing():
    assert clipped("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    cut = clipped("x" * (LONGEST_TEXT + 1234))
    assert cut.startswith("x" * LONGEST_TEXT + "\n") and "1,234 more characters" in cut


def test_the_first_pages_are_inline_and_the_others_files():
    entries = [json.dumps("x" * 98) for _ in range(10)]  # 100 bytes each
    pages = paginate(entries, inline_bytes=420, page_bytes=200)
    assert pages.page_of == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert len(pages.inline) == 2  # two entries, brackets and a comma are 203 bytes
    assert [name for name, _ in pages.scripts()] == ["0002.js", "0003.js", "0004.js"]
    name, script = next(pages.scripts())
    number, page = re.fullmatch(r"tpoLitePage\((\d+),(.*)\);\n", script).groups()
    assert (int(number), json.loads(page)) == (2, ["x" * 98] * 2)


def test_an_entry_larger_than_a_page_has_a_page_of_its_own():
    pages = paginate(['"a"', json.dumps("x" * 500), '"b"'], inline_bytes=0, page_bytes=100)
    assert pages.page_of == [0, 1, 2] and pages.inline == []
    assert paginate([], 100, 100).files == []
