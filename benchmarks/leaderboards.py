"""Published scores of AlpacaEval 2 and Arena-Hard beside ours, written to results/leaderboards.md.

    python -m benchmarks.leaderboards DATA

DATA holds `alpaca_eval2/` (ground_truth_dev.csv, annotations_dev/MODEL.csv, instruction_difficulty.csv, df_gamed.csv)
and `arena_hard/` (battles_official_2models.jsonl, answers/MODEL.jsonl, leaderboard_20240731.csv). No text of them is
shipped with this project.
"""

from __future__ import annotations

import csv
import sys
import warnings
from pathlib import Path

from benchmarks.tables import RESULTS, heading, table, write
from tpo_lite.evaluation.alpaca import score
from tpo_lite.evaluation.alpaca_annotations import read_annotations
from tpo_lite.evaluation.arena import scores
from tpo_lite.evaluation.arena_files import files_in, read_answers, read_battles
from tpo_lite.evaluation.length_controlled import LengthControlled, check_difficulty, fit

ROUNDS = 200
"""Resamples of the instructions for the interval of a length-controlled win rate."""


def alpaca(data: Path) -> list[str]:
    """Return the table of AlpacaEval 2. The fits are made in this process, to load the package once."""
    gamed = data / "df_gamed.csv"
    check_difficulty(data / "instruction_difficulty.csv", gamed)
    rows = []
    with (data / "ground_truth_dev.csv").open(encoding="utf-8") as file:
        for published in csv.DictReader(file):
            annotations = read_annotations(data / "annotations_dev" / f"{published['model']}.csv")
            ours = score(annotations)
            if annotations.is_baseline:
                lc = LengthControlled(50.0, 50.0, 50.0, 0.0, 0)
            else:
                lc = fit([[row.len_1, row.len_2, row.preference] for row in annotations.rows], str(gamed), ROUNDS)
            rows.append(
                [
                    published["model"],
                    ours.n,
                    f"{float(published['published_win_rate']):.4f}",
                    f"{ours.win_rate.value:.4f}",
                    f"{float(published['published_lc_winrate']):.4f}",
                    f"{lc.value:.4f}",
                    f"{lc.low:.2f} to {lc.high:.2f}",
                    published["published_avg_length"].removesuffix(".0"),
                    ours.avg_length,
                ]
            )
    columns = "model:|n|win rate, published|ours|LC, published|ours|95 % bootstrap|length, published|ours"
    return table(columns, rows)


def arena(data: Path) -> list[str]:
    """Return the table of Arena-Hard."""
    with (data / "leaderboard_20240731.csv").open(encoding="utf-8") as file:
        published = {line["model"]: line for line in csv.DictReader(file)}
    answers = [read_answers(path) for path in files_in([data / "answers"])]
    rows = []
    for ours in scores(read_battles([data / "battles_official_2models.jsonl"]), answers=answers):
        theirs = published[ours.model]
        rows.append(
            [
                ours.model,
                ours.questions,
                theirs["score"],
                f"{ours.score:.2f}",
                f"{theirs['rating_q025']} to {theirs['rating_q975']}",
                f"{ours.official_low:.2f} to {ours.official_high:.2f}",
                f"{ours.low:.2f} to {ours.high:.2f}",
                theirs["avg_tokens"].removesuffix(".0"),
                ours.average_tokens,
            ]
        )
    columns = (
        "model:|questions|score, published|ours|interval, published|ours, by vote|ours, by question|tokens, published"
    )
    return table(columns + "|ours", rows)


def main(arguments: list[str]) -> None:
    """Compute both tables and write them."""
    warnings.simplefilter("ignore")  # scikit-learn's, about parameters that alpaca-eval uses
    data = Path(arguments[0])
    lines = heading("Published scores beside ours", "cpu", "python -m benchmarks.leaderboards DATA")
    lines += [
        "## AlpacaEval 2",
        "",
        "Annotations of GPT-4 turbo, as published. Win rates and length-controlled (LC) win rates are in per cent,",
        "lengths in characters. Intervals are over instructions. Published lengths are of all 805 outputs, ours of",
        "those that have an annotation.",
        "",
        *alpaca(data / "alpaca_eval2"),
        "",
        "## Arena-Hard v0.1",
        "",
        "Votes of GPT-4 turbo against gpt-4-0314, as published. The official interval takes votes as independent. A",
        "question has two games, and a strong verdict counts three times, so an interval over questions is wider.",
        "",
        *arena(data / "arena_hard"),
    ]
    write(RESULTS / "leaderboards.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
