"""The length-controlled win rate of AlpacaEval 2, by the package `alpaca-eval` itself.

    python -m tpo_lite.evaluation.length_controlled < REQUEST.json

is a process of its own, because the package changes scikit-learn's configuration for good and loads pandas. It fits
P(model wins) = sigma(bias + a tanh(length difference) + b difficulty) with the package's functions, L1 penalty and
cross-validation, beside the annotations of gamed baselines (Dubois et al., arXiv 2404.04475), and predicts with equal
lengths. Nothing is downloaded and nothing is written into the package.

The package's standard error is that of the fitted values, which says nothing about another draw of instructions. So the
fit is repeated on resamples of the instructions, with the penalty that cross-validation chose for the whole.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import packaging.version

from tpo_lite.errors import InputError, TpoError, first_line
from tpo_lite.evaluation.alpaca_annotations import INSTRUCTIONS, Annotations, csv_rows, read_text, whole_number
from tpo_lite.intervals import bootstrap, percentiles

GLM = "length_controlled_v1"
"""The name of the leaderboard's regression in the package."""
GAMED_COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline", "model")


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate, in per cent."""

    value: float
    """The win rate, had all outputs been as long as the baseline's."""
    low: float
    """Lower end of the 95 % bootstrap interval over instructions."""
    high: float
    """Upper end."""
    standard_error: float
    """Standard deviation over the resamples."""
    rounds: int
    """Resamples."""


def length_controlled(annotations: Annotations, difficulty: Path, gamed: Path, rounds: int = 200) -> LengthControlled:
    """Return the length-controlled win rate and its bootstrap interval.

    `difficulty` and `gamed` are the leaderboard's `instruction_difficulty.csv` and `df_gamed.csv`. Raises `InputError`
    for files that are not theirs, for annotations whose length differences are all equal, and where the package is not
    installed.
    """
    check_difficulty(difficulty, gamed)
    if annotations.is_baseline:
        return LengthControlled(50.0, 50.0, 50.0, 0.0, 0)
    differences = {row.len_1 - row.len_2 for row in annotations.rows}
    if len(differences) == 1:
        raise InputError(
            f"{annotations.model}: every output differs from the baseline's by {differences.pop()} characters, so that "
            "length cannot be controlled. Leave out --difficulty and --gamed."
        )
    request = {
        "rows": [[row.len_1, row.len_2, row.preference] for row in annotations.rows],
        "gamed": str(gamed.resolve()),
        "rounds": rounds,
    }
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "tpo_lite.evaluation.length_controlled"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode == InputError.exit_code:
        raise InputError(done.stderr.strip().splitlines()[-1])
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise TpoError(
            f"alpaca-eval could not fit the length-controlled win rate: {last}. Check that scikit-learn is older than "
            "1.10: pip install 'tpo_lite[eval]'"
        )
    return LengthControlled(**json.loads(done.stdout.splitlines()[-1]))


def check_difficulty(difficulty: Path, gamed: Path) -> None:
    """Check that both files have the same difficulty for each of the 805 instructions, as the leaderboard's have.

    The package takes the difficulties from the gamed file by their place in it, so that one in another order would be
    read wrongly. Raises `InputError` with the line.
    """
    found: dict[int, float] = {}
    for where, line in csv_rows(difficulty, read_text(difficulty), ("index", "instruction_difficulty")):
        index = whole_number(line["index"], "index", where, INSTRUCTIONS - 1)
        if index in found:
            raise InputError(
                f"{where} has instruction {index} again. Give the leaderboard's instruction_difficulty.csv."
            )
        found[index] = _number(line["instruction_difficulty"], "instruction_difficulty", where)
    missing = sorted(set(range(INSTRUCTIONS)) - set(found))
    if missing:
        raise InputError(
            f"{difficulty} lacks instruction {missing[0]}. Give the leaderboard's instruction_difficulty.csv."
        )
    rows = 0
    for number, (where, line) in enumerate(csv_rows(gamed, read_text(gamed), GAMED_COLUMNS)):
        index = whole_number(line["index"], "index", where, INSTRUCTIONS - 1)
        if index != number % INSTRUCTIONS:
            raise InputError(f"{where} has instruction {index} where {number % INSTRUCTIONS} belongs. Keep its order.")
        for key in ("preference", "std_delta_len"):
            _number(line[key], key, where)
        if abs(_number(line["instruction_difficulty"], "instruction_difficulty", where) - found[index]) > 1e-6:
            raise InputError(
                f"{where} has another difficulty for instruction {index} than {difficulty}. Give files of one release."
            )
        rows = number + 1
    if not rows or rows % INSTRUCTIONS:
        raise InputError(
            f"{gamed} has {rows} rows, not a multiple of {INSTRUCTIONS}. Give the leaderboard's df_gamed.csv."
        )


def _number(text: str, name: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number - number != 0:  # NaN and infinity
        raise InputError(f"{where}: {name} is {text!r}. Give a number.")
    return number


def _provide_pkg_resources() -> None:
    """Let `alpaca-eval` be imported beside setuptools 82 and later, which have no `pkg_resources` any more.

    Version 0.6.6 imports it for this one function, which `packaging` has.
    """
    if "pkg_resources" not in sys.modules and find_spec("pkg_resources") is None:
        stand_in = ModuleType("pkg_resources")
        stand_in.__dict__["parse_version"] = packaging.version.parse
        sys.modules["pkg_resources"] = stand_in


def fit(rows: list[list[float]], gamed: str, rounds: int) -> LengthControlled:
    """Fit the regression to the whole and to resamples of it; `rows` has both lengths and the preference."""
    _provide_pkg_resources()
    import pandas as pd
    from alpaca_eval.metrics import glm_winrate

    settings = glm_winrate.GLM_INFO[GLM]
    # The package downloads this file, and reads nothing else of what is downloaded.
    glm_winrate.hf_hub_download = lambda **_: gamed
    data = pd.DataFrame(
        {
            # The formula reads only the lengths of the outputs.
            "output_1": ["." * int(row[0]) for row in rows],
            "output_2": ["." * int(row[1]) for row in rows],
            "preference": [row[2] for row in rows],
        }
    )
    train, test, weights = glm_winrate._get_featurized_data(
        data, settings["formula"], settings["regularize_to_baseline_lambda"]
    )
    model = glm_winrate.fit_LogisticRegressionCV(
        train, "preference", is_ytrue_proba=True, sample_weight=weights, **settings["kwargs"]
    )
    value = 100 * float(model.predict_proba(test)[:, 1].mean())
    penalty = float(model.C_[0])
    gamed_rows = len(train) - len(data)

    def refit(chosen: Any) -> float:
        """Return the win rate of a resample; the gamed baselines stay as they are."""
        kept = [*range(gamed_rows), *(gamed_rows + chosen)]
        again = glm_winrate.fit_LogisticRegressionCV(
            train.iloc[kept], "preference", n_splits=0, C=penalty, sample_weight=weights.iloc[kept]
        )
        found: float = again.predict_proba(test.iloc[chosen])[:, 1].mean()
        return 100 * found

    resampled = bootstrap(refit, len(data), rounds, "length-controlled")
    low, high = percentiles(resampled)
    return LengthControlled(value, float(low), float(high), float(resampled.std(ddof=1)), rounds)


def main() -> int:
    """Read a request from standard input, print the answer as JSON, and return the exit code."""
    warnings.simplefilter("ignore")  # scikit-learn's about parameters that the package uses, thousands of them
    request = json.load(sys.stdin)
    try:
        found = fit(request["rows"], request["gamed"], request["rounds"])
    except ImportError as error:
        print(
            f"AlpacaEval's length-controlled win rate needs the extra `eval` ({first_line(error)}). "
            "Install it: pip install 'tpo_lite[eval]'",
            file=sys.stderr,
        )
        return InputError.exit_code
    print(json.dumps(dataclasses.asdict(found)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
