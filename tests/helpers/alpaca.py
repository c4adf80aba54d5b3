"""Annotations of AlpacaEval in both forms, made up: no text of the benchmark is needed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tpo_lite.evaluation.alpaca_annotations import INSTRUCTIONS

COLUMNS = ("row", "index", "len_1", "len_2", "preference")


def made_up_rows(left_out: tuple[int, ...] = ()) -> list[list[float]]:
    """Return the rows of a CSV file: a judge that likes long outputs, and a model that is a little worse."""
    random = np.random.default_rng(5)
    kept = [index for index in range(INSTRUCTIONS) if index not in left_out]
    len_1, len_2 = random.integers(200, 3000, (2, INSTRUCTIONS))
    wins = random.random(INSTRUCTIONS) < 1 / (1 + np.exp(0.4 - (len_2 - len_1) / 900))
    preference = np.where(wins, 1.97, 1.02)
    return [[row, index, len_1[index], len_2[index], preference[index]] for row, index in enumerate(kept)]


def write_csv(path: Path, rows: list[list[float]], columns: tuple[str, ...] = COLUMNS) -> Path:
    """Write rows as CSV."""
    lines = [",".join(columns), *(",".join(f"{value:g}" for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_difficulty(folder: Path) -> tuple[Path, Path]:
    """Write made-up instruction_difficulty.csv and df_gamed.csv, and return their paths."""
    random = np.random.default_rng(6)
    difficulty = random.normal(size=INSTRUCTIONS)
    lines = ["index,instruction_difficulty", *(f"{index},{value}" for index, value in enumerate(difficulty))]
    (folder / "difficulty.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["preference,index,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for model, delta in (("verbose", -1.5), ("concise", 1.5)):
        for index, value in enumerate(difficulty):
            length = random.normal(delta)
            lines.append(f"{random.random()},{index},{length},{value},False,{model}")
    (folder / "gamed.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "difficulty.csv", folder / "gamed.csv"


def write_json(path: Path, rows: list[dict[str, object]]) -> Path:
    """Write the official form."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path
