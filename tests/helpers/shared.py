"""Data for tests: our own small files, and the real ones beside the clone, which hold other people's texts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "data"
"""Figures, and texts of our own, in the formats of the real files."""
SHARED = Path(__file__).parents[3] / "shared"
"""The folder beside the clone. Tests that read it are marked `shared`."""
REQUIRED = "TPO_LITE_SHARED"
"""Where this environment variable is `required`, as in CI, missing data is a failure and not a skip."""


def need_shared_data() -> None:
    """Skip the test that runs, or fail it, where the data beside the clone is missing."""
    if (SHARED / "data").is_dir():
        return
    reason = f"reads real data that is not part of the project and is not in {SHARED}"
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
