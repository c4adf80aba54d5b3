"""The report of a real run: every stage, match and example of a made-up run is where a reader looks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import real
from tests.helpers.alphabet import prompt
from tpo_lite.files import write_json
from tpo_lite.recipe import Recipe
from tpo_lite.records import JsonlAppender
from tpo_lite.thoughts import OUTCOMES


def share(value: float, n: int = 20) -> dict[str, Any]:
    return {"value": value, "low": value / 2, "high": (1 + value) / 2, "n": n}


def answered(ok: int) -> dict[str, Any]:
    """Of 20 outputs, `ok` are well-formed and the others are truncated."""
    mean = {"value": 12.5, "half_width": 1.5, "n": ok}
    return {
        "prompts": 20,
        "accuracy": share(0.25, 4),
        "parse": dict.fromkeys(OUTCOMES, 0) | {"ok": ok, "truncated": 20 - ok},
        "parse_ok": share(ok / 20),
        "thought_tokens": mean,
        "response_tokens": mean,
    }


VALIDATION = {
    **{"prompts": 8, "checked": 0, "parse": dict.fromkeys(OUTCOMES, 0), "thought_tokens": None},
    **{"response_tokens": None},
}
ITERATION = {
    **{"prompts": 8, "engine": "gguf", "probe": 0.1, "shift": 0.01, "parse": dict.fromkeys(OUTCOMES, 0)},
    **{"thought_tokens": 20.0, "response_tokens": 30.0, "rho": 0.15, "rho_reached": True, "accuracy": None},
    "judge": {"calls": 9, "saved": 1, "unparsed": 0, "overlong": 0, "flip_rate": 0.25, "first_slot_rate": 0.625},
    "pairs": {"pairs": 7, "counts": {"prompts": 8}, "chosen_tokens": 5.0, "rejected_tokens": 5.0},
    "dpo": {
        **{"first_loss": 0.693, "last_loss": 0.612, "last_margin": 0.2, "last_accuracy": 1.0},
        **{"steps": 1, "pairs": 7, "rank": 32, "reference": "M_0"},
    },
    "crosscheck": None,
    "merge": {"merge": "fold", "rank": 32, "update_norm": 0.0125, "kl": 0.0},
    "validation": {
        **VALIDATION,
        **{"chosen": "checkpoint-1", "checkpoints": {"M_t": 0.5, "checkpoint-1": 0.6}},
        "win_rate": {name: {"value": 0.6, "low": 0.3, "high": 0.8} for name in ("M_t", "M_0")},
    },
    "test": {**answered(19), "win_rate": share(0.55), "win_rate_base": share(0.8), "overlong": 0},
    **{"seconds": {"dpo": 90.0}, "peak_bytes": {"dpo": {"host": 2_500_000_000}}},
}
WARM_START = {
    "samples": {
        **{"needed": True, "probe": None, "before": answered(0), "sampled": None, "examples": 16, "cut": 2},
    },
    "training": {"steps": 2, "first_loss": 1.5, "last_loss": 1.0},
    **{"seconds": {"warm_start": 30.0}, "peak_bytes": {"warm_start": {"host": 3_000_000_000}}},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    recipe = Recipe.model_validate({"engine": "gguf", "iterations": 1, "judge": {"model": "/models/judge.gguf"}})
    thinking = {"warm_start": WARM_START, "base": VALIDATION | {"accuracy": None}, "base_test": answered(17)}
    results = {
        **{"schema_version": 1, "tpo_lite": "0", "recipe": recipe.model_dump(), "limits": {}, "instructions": None},
        "arms": {"thinking": thinking | {"iterations": [ITERATION]}},
        "thinking_vs_direct": [share(0.5), share(0.575)],
    }
    write_json(tmp_path / "results.json", results)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"engine": "transformers", "iterations": 1}))
    write_json(tmp_path / "thinking/iteration-0/validation.json", {"chosen": "checkpoint-1"})
    with JsonlAppender(tmp_path / "thinking/iteration-0/test/answers.jsonl") as out:
        out.append(*(prompt(f"answer {id}", id=id) for id in "uvwx"))
    return tmp_path


def test_every_model_is_told_from_the_base_on(run):
    text = real.report([run], None, "make real")
    assert "| thinking | M_base | 0.0 % (0.0 to 50.0, n 20) | 20 truncated | 25.0 % (12.5 to 62.5, n 4) |" in text
    assert "| thinking | M_0 | 85.0 % (42.5 to 92.5, n 20) | 17 ok, 3 truncated |" in text
    assert "| thinking | M_1 | 95.0 % (47.5 to 97.5, n 20) | 19 ok, 1 truncated |" in text
    assert "12.5 ± 1.5" in text and "judge.gguf" in text and "/models" not in text


def test_every_match_has_its_interval(run):
    text = real.report([run], None, "make real")
    assert "| thinking | M_1 | 80.0 % (40.0 to 90.0, n 20) | 55.0 % (27.5 to 77.5, n 20) |" in text
    assert "| M_1 | 57.5 % (28.7 to 78.8, n 20) |" in text or "| M_1 | 57.5 % (28.8 to 78.8, n 20) |" in text


def test_training_and_cost_are_told(run):
    text = real.report([run], None, "make real")
    assert "| thinking | 1 | 25.0 % | 62.5 % | 7 | 0.15 | 0.693, 0.612 | +0.200 | checkpoint-1 | 1.2 % |" in text
    assert "All phases took 2.0 minutes. Peak memory of any phase: 3.00 GB." in text


def test_a_seed_chooses_the_examples(run):
    text = real.report([run], None, "make real")
    assert text.count("**?** (ok)") == real.EXAMPLES
    assert text == real.report([run], None, "make real")
