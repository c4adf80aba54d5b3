"""Reading AlpacaEval's annotations: both forms, any order, and what is refused."""

from __future__ import annotations

import random

import pytest

from tests.helpers.alpaca import made_up_rows, write_csv, write_json
from tpo_lite.errors import InputError
from tpo_lite.evaluation import alpaca_annotations
from tpo_lite.evaluation.alpaca_annotations import fingerprints, number_of, read_annotations
from tpo_lite.instructions.leakage import fingerprint, is_leaked


@pytest.fixture
def known(monkeypatch):
    """Instructions of our own in place of the benchmark's, whose texts we may not ship."""
    texts = [f"Say {number}." for number in range(805)]
    numbers = {fingerprint(text): number for number, text in enumerate(texts)}
    monkeypatch.setattr(alpaca_annotations, "_numbers", lambda: numbers)
    return texts


def official(known, left_out=()):
    return [
        {
            "instruction": text,
            "output_1": "a" * (number + 1),
            "output_2": "b" * 10,
            "generator_1": "gpt4_1106_preview",
            "generator_2": "mine",
            "annotator": "weighted_alpaca_eval_gpt4_turbo",
            "preference": 1 + number / 1000,
        }
        for number, text in enumerate(known)
        if number not in left_out
    ]


def test_the_list_of_instructions_is_a_part_of_the_leaked_ones():
    assert len(set(fingerprints())) == 805
    assert not is_leaked("Say 1.")
    assert number_of("Say 1.") is None


@pytest.mark.parametrize("left_out", [(), (3, 700)])
def test_any_order_reads_the_same(known, tmp_path, left_out):
    rows = official(known, left_out)
    plain = read_annotations(write_json(tmp_path / "plain.json", rows))
    random.Random(0).shuffle(rows)
    assert read_annotations(write_json(tmp_path / "shuffled.json", rows)) == plain
    assert (plain.model, plain.baseline, plain.judge) == (
        "mine",
        "gpt4_1106_preview",
        "weighted_alpaca_eval_gpt4_turbo",
    )
    assert plain.missing == list(left_out)
    assert [each.row for each in plain.rows] == list(range(805 - len(left_out)))
    assert (plain.rows[-1].index, plain.rows[-1].len_1, plain.rows[-1].len_2) == (804, 805, 10)

    rows = made_up_rows(left_out)
    in_order = read_annotations(write_csv(tmp_path / "a.csv", rows))
    random.Random(0).shuffle(rows)
    (tmp_path / "b").mkdir()
    assert read_annotations(write_csv(tmp_path / "b" / "a.csv", rows)) == in_order
    # Without the column `row`, the order is that of the instructions.
    without = [row[1:] for row in rows]
    assert (
        read_annotations(write_csv(tmp_path / "a.csv", without, ("index", "len_1", "len_2", "preference"))) == in_order
    )


def test_a_preference_of_zero_is_a_draw(tmp_path):
    rows = made_up_rows()
    rows[4][4] = 0
    assert read_annotations(write_csv(tmp_path / "a.csv", rows)).rows[4].preference == 1.5


def changed(row, column, value):
    """A change to the rows of a CSV file; rows and columns count from 0."""

    def change(rows):
        rows[row][column] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(17, 4, float("nan")), r"a.csv:19: preference is 'nan'. Give a number from 1"),
        (changed(17, 4, 2.5), r"a.csv:19: preference is '2.5'"),
        (changed(17, 4, 0.5), r"a.csv:19: preference is '0.5'"),
        (changed(3, 1, 2), r"a.csv:5 has instruction 2 of .*a.csv:4 again"),
        (changed(3, 0, 2), r"a.csv:5 has row 2 of .*a.csv:4 again"),
        (changed(3, 1, 805), r"a.csv:5: index is '805'. Give a whole number from 0 to 804"),
        (changed(3, 2, -1), r"a.csv:5: len_1 is '-1'. Give a whole number from 0"),
        (changed(3, 3, 1.5), r"a.csv:5: len_2 is '1.5'"),
        (lambda rows: rows[3].pop(), r"a.csv:5 has 4 fields and the header 5"),
        (lambda rows: rows.pop(40), r"lacks row 40. Add it"),
        (lambda rows: rows.__delitem__(slice(100, None)), r"lacks 705 of AlpacaEval's 805 .* number 100"),
        (lambda rows: rows.clear(), r"has no annotations"),
    ],
)
def test_bad_lines_are_named(tmp_path, change, message):
    rows = made_up_rows()
    change(rows)
    with pytest.raises(InputError, match=message):
        read_annotations(write_csv(tmp_path / "a.csv", rows))


def test_a_missing_column_is_named(tmp_path):
    with pytest.raises(InputError, match="no column 'preference'"):
        read_annotations(write_csv(tmp_path / "a.csv", [[0, 0, 1, 1]], ("row", "index", "len_1", "len_2")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": None}, "row 9: preference is None"),
        ({"preference": float("nan")}, "row 9: preference is nan"),
        ({"preference": True}, "row 9: preference is True"),
        ({"instruction": "Say 8."}, "row 9 has the instruction 8 of .*row 8 again"),
        ({"instruction": "Sing."}, "row 9: 'Sing.' is not an instruction of AlpacaEval"),
        ({"output_2": None}, "row 9: output_2 is missing or not a text"),
        ({"generator_2": "yours"}, "generator_2 'mine' and 'yours'"),
        ({"annotator": "me"}, "annotator 'me' and 'weighted"),
    ],
)
def test_bad_items_are_named(known, tmp_path, change, message):
    rows = official(known)
    rows[9] |= change
    with pytest.raises(InputError, match=message):
        read_annotations(write_json(tmp_path / "a.json", rows))


def test_what_is_no_file_of_annotations(known, tmp_path):
    with pytest.raises(InputError, match="row 0 is not an annotation but 3"):
        read_annotations(write_json(tmp_path / "a.json", [3]))
    (tmp_path / "a.json").write_text("[1,", encoding="utf-8")
    with pytest.raises(InputError, match="is not JSON"):
        read_annotations(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_annotations(tmp_path / "a.json")
