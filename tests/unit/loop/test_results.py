"""The tables: every figure of a made-up results.json is where a reader looks for it; and the JSON schema."""

import io
import json
import re
from pathlib import Path

from rich.console import Console

from tpo_lite.intervals import percent
from tpo_lite.loop.results_schema import Results, schema
from tpo_lite.loop.tables import number, print_final, print_iteration
from tpo_lite.phases.summaries import well_formed_share
from tpo_lite.run import PHASES

OLD_PARSE = {"ok": 7, "no_marker": 1, "marker_twice": 0, "empty_thought": 2, "empty_response": 0, "truncated": 0}
PARSE = {**OLD_PARSE, "no_thought_marker": 0}


def iteration(accuracy, win, chosen="checkpoint-4"):
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
        "seconds": {"dpo": 12.4},
        "peak_bytes": {phase: {"host": 1.5e9, **({"gpu": 6e9} if phase == "dpo" else {})} for phase in PHASES},
    }


BASE = {
    **{"accuracy": 0.25, "prompts": 10, "checked": 10},
    **{"parse": PARSE, "thought_tokens": 31.0, "response_tokens": 4.0},
}
DATA = {
    "schema_version": 1,
    "tpo_lite": "0.1.0",
    "recipe": {},
    "instructions": None,
    "limits": {"sampling.batch": 16},
    "arms": {
        "thinking": {"base": BASE, "iterations": [iteration(0.5, 0.6), iteration(0.75, 0.7)]},
        "direct": {"base": BASE, "iterations": [iteration(None, 0.4, chosen="M_t")]},
    },
}


RESULTS = Results.from_dict(DATA)


def rows(show, *arguments):
    """The printed table as lists of cells, by the first cell."""
    console = Console(width=200, record=True, file=io.StringIO())
    show(RESULTS, *arguments, console)
    lines = console.export_text().splitlines()
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


def test_nothing_measured_is_a_dash():
    assert (percent(None), number(None)) == ("-", "-")
    assert (percent(0.0), number(0.0)) == ("0.0 %", "0.0")


def test_the_json_schema_in_the_docs_is_that_of_the_code():
    written = Path(__file__, "../../../../docs/results.schema.json").resolve().read_text()
    assert json.loads(written) == schema(), "run `make docs`"


def test_results_come_back_from_json_as_they_were():
    assert Results.from_dict(json.loads(json.dumps(RESULTS.to_dict()))) == RESULTS
    assert RESULTS.to_dict() == DATA
