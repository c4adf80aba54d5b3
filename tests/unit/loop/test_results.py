"""The tables: every figure of a made-up results.json is where a reader looks for it; and the JSON schema."""

import io
import json
import re
from pathlib import Path

from rich.console import Console

from tpo_lite.intervals import percent
from tpo_lite.loop.results_schema import Results, schema
from tpo_lite.loop.tables import number, print_final, print_iteration
from tpo_lite.phase_order import PHASES
from tpo_lite.phases.summaries import well_formed_share

OLD_PARSE = {"ok": 7, "no_marker": 1, "marker_twice": 0, "empty_thought": 2, "empty_response": 0, "truncated": 0}
PARSE = {**OLD_PARSE, "no_thought_marker": 0}


def iteration(accuracy, win, chosen="checkpoint-4", tested=None):
    return {
        "prompts": 2,
        "engine": "transformers",
        "probe": None,
        "shift": None,
        "parse": PARSE,
        "thought_tokens": 30.25,
        "response_tokens": 4.0,
        "judge": {"calls": 40, "saved": 16, "unparsed": 3, "overlong": 2, "flip_rate": 0.125, "first_slot_rate": None},
        "pairs": {
            "pairs": 2,
            "counts": {"prompts": 3, "best-worst": 1, "malformed": 1, "tied": 1, "one_response": 0},
            "chosen_tokens": 5.0,
            "rejected_tokens": None,
        },
        "rho": 0.5,
        "rho_reached": False,
        "dpo": {
            **{"first_loss": 0.693147, "last_loss": 0.5, "last_margin": 0.75, "last_accuracy": 1.0},
            **{"steps": 4, "pairs": 2, "rank": 16, "reference": "M_0"},
        },
        "crosscheck": None,
        "merge": {"merge": "fold", "rank": 16, "update_norm": 0.0123, "kl": 2e-9},
        "validation": {
            "prompts": 10,
            "parse": PARSE,
            "thought_tokens": 28.0,
            "response_tokens": 4.0,
            "checked": 10,
            "chosen": chosen,
            "checkpoints": {"M_t": 0.5, "checkpoint-4": 0.6},
            "win_rate": {
                name: {"value": value, "low": 0.1, "high": 0.9} for name, value in (("M_t", 0.5), ("M_0", win))
            },
        },
        "accuracy": accuracy,
        "test": tested and tested | {"win_rate": {"value": win, "low": 0.3, "high": 0.85, "n": 20}, "overlong": 1},
        "seconds": {"dpo": 12.4},
        "peak_bytes": {phase: {"host": 1.5e9, **({"gpu": 6e9} if phase == "dpo" else {})} for phase in PHASES},
    }


BASE = {
    **{"accuracy": 0.25, "prompts": 10, "checked": 10},
    **{"parse": PARSE, "thought_tokens": 31.0, "response_tokens": 4.0},
}
TESTED = {
    **{"prompts": 20, "accuracy": {"value": 0.55, "low": 0.342, "high": 0.742, "n": 20}, "parse": PARSE},
    "parse_ok": {"value": 1.0, "low": 0.839, "high": 1.0, "n": 20},
    "thought_tokens": {"value": 30.6, "half_width": 2.4, "n": 20},
    "response_tokens": {"value": None, "half_width": None, "n": 0},
}
DATA = {
    "schema_version": 1,
    "tpo_lite": "0.1.0",
    "recipe": {},
    "instructions": None,
    "limits": {"sampling.batch": 16},
    "arms": {
        "thinking": {
            "warm_start": None,
            "base": BASE,
            "base_test": None,
            "iterations": [iteration(0.5, 0.6), iteration(0.75, 0.7)],
        },
        "direct": {
            "warm_start": None,
            "base": BASE,
            "base_test": None,
            "iterations": [iteration(None, 0.4, chosen="M_t")],
        },
    },
    "thinking_vs_direct": [],
}


RESULTS = Results.from_dict(DATA)
WITH_TEST = DATA | {
    "arms": {
        "thinking": {
            "warm_start": None,
            "base": BASE,
            "base_test": TESTED,
            "iterations": [iteration(0.5, 0.6, tested=TESTED)],
        },
        "direct": {"warm_start": None, "base": BASE, "base_test": TESTED, "iterations": []},
    },
    "thinking_vs_direct": [{"value": 0.25, "low": 0.112, "high": 0.469, "n": 20}],
}


def printed(show, *arguments, results=RESULTS, width=200):
    console = Console(width=width, record=True, file=io.StringIO())
    show(results, *arguments, console)
    return console.export_text()


def rows(show, *arguments):
    """The printed table as lists of cells, by the first cell."""
    lines = printed(show, *arguments).splitlines()
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines]
    return {row[0]: row[1:] for row in cells}


def test_an_iteration_has_a_column_an_arm():
    table = rows(print_iteration, 0)
    both = {
        "thinking": ["direct"],
        "prompts x samples": ["2 x 5"] * 2,
        "parse ok": ["90.0 % (1 no_marker, 2 empty_thought)"] * 2,
        "thought / response tokens": ["30.2 / 4.0"] * 2,
        "judge calls (saved)": ["40 (16), 2 overlong"] * 2,
        "flip / first-slot / unparsed": ["12.5 % / - / 3"] * 2,
        "pairs": ["2 (1 malformed, 1 tied)"] * 2,
        "chosen / rejected tokens": ["5.0 / -"] * 2,
        "rho": ["0.50 (chosen still longer)"] * 2,
        "loss first / last": ["0.6931 / 0.5000"] * 2,
        "margin last": ["+0.750"] * 2,
        "update norm, KL of merge": ["1.2 %, 2.0e-09"] * 2,
        "win rate vs M_t / M_0": ["50.0 % / 60.0 %", "M_t kept / 40.0 %"],
        "accuracy (validation)": ["50.0 %", "-"],
        "dpo: s, peak GB": ["12 s, 1.50 + 6.0 GPU"] * 2,
        "fold: s, peak GB": ["0 s, 1.50"] * 2,
    }
    assert {name: table[name] for name in both} == both


def test_an_arm_that_is_behind_has_no_column_yet():
    assert rows(print_iteration, 1)["thinking"] == []


def test_the_final_table_has_a_row_a_model():
    table = rows(print_final)
    assert table["M_0"] == ["25.0 %", "25.0 %", "-", "-", "90.0 %", "90.0 %", "31.0"]
    assert table["M_1"] == ["50.0 %", "-", "60.0 %", "40.0 %", "90.0 %", "90.0 %", "28.0"]
    assert table["sampling.batch was reduced to 16 because memory ran out"] == []
    assert table["M_2"] == ["75.0 %", "-", "70.0 %", "-", "90.0 %", "-", "28.0"]


def test_the_share_of_an_older_run_is_that_of_its_own_rule():
    """An empty thought was malformed then."""
    assert (well_formed_share(PARSE), well_formed_share(OLD_PARSE)) == (0.9, 0.7)
    assert well_formed_share({}) == 0.0


def test_the_final_table_reports_the_test_slice_with_intervals_in_eighty_columns():
    text = printed(print_final, results=Results.from_dict(WITH_TEST), width=80)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "On the test slice: 20 instructions, 20 with a known answer" in lines
    assert "per cent and tokens, with 95 % intervals" in lines
    assert "M_0 thinking 55 (34-74) - 25 (11-47) 100 (84-100) 31 ±2 -" in lines
    assert "M_0 direct 55 (34-74) - - 100 (84-100) - -" in lines
    assert "M_1 thinking 55 (34-74) 60 (30-85) - 100 (84-100) 31 ±2 -" in lines
    assert "M_1 direct" not in text  # its iteration is not finished


def test_an_iteration_warns_where_the_second_judge_does_not_share_a_preference():
    parted = json.loads(json.dumps(DATA)) | {"recipe": {"select": {"judge": {"model": "hub:owner/models/other.gguf"}}}}
    rate = {"value": 0.62, "low": 0.53, "high": 0.7}
    parted["arms"]["thinking"]["iterations"][0]["crosscheck"] = {
        "would_choose": "checkpoint-4",
        "checkpoints": {"checkpoint-4": rate},
        "win_rate": {"M_t": rate, "M_0": rate},
        "partings": [{"model": "checkpoint-4", "against": "M_0", "training": 0.62, "second": 0.47}],
    }
    warning = (
        "judge hacking?: thinking: the training judge prefers checkpoint-4 to M_0 (62.0 %), "
        "other.gguf does not (47.0 %)"
    )
    assert warning in printed(print_iteration, 0, results=Results.from_dict(parted))
    assert "judge hacking" not in printed(print_iteration, 0)


def test_a_run_without_a_test_slice_says_that_its_table_is_of_the_one_that_chose():
    assert "which also chose the checkpoints\n(this run has no test slice)" in re.sub(
        " +\n", "\n", printed(print_final)
    )


def test_results_of_a_version_without_a_test_slice_are_read():
    older = json.loads(json.dumps(DATA))
    del older["thinking_vs_direct"]
    for arm in older["arms"].values():
        del arm["base_test"]
        for data in arm["iterations"]:
            del data["test"], data["crosscheck"]
    assert Results.from_dict(older) == RESULTS


def test_nothing_measured_is_a_dash():
    assert (percent(None), number(None)) == ("-", "-")
    assert (percent(0.0), number(0.0)) == ("0.0 %", "0.0")


def test_the_json_schema_in_the_docs_is_that_of_the_code():
    written = Path(__file__, "../../../../docs/results.schema.json").resolve().read_text()
    assert json.loads(written) == schema(), "run `make docs`"


def test_results_come_back_from_json_as_they_were():
    assert Results.from_dict(json.loads(json.dumps(RESULTS.to_dict()))) == RESULTS
    assert RESULTS.to_dict() == DATA
