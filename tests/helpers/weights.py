"""A model that others made, for tests marked `weights`: SmolLM2-135M-Instruct, as `make models` fetches it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.models import FOLDER, MODELS

SMOLLM2 = Path(__file__).parents[2] / FOLDER / MODELS[0].file
REQUIRED = "TPO_LITE_WEIGHTS"
"""Where this environment variable is `required`, as in CI, a missing model is a failure and not a skip."""


def need_weights() -> None:
    """Skip the test that runs, or fail it, where the model is missing."""
    if SMOLLM2.exists():
        return
    reason = f"runs {SMOLLM2.name}, which is not there: python -m benchmarks.models --policy-only"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
