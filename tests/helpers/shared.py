"""Where the real data that tests read lies. A test fails, and is never skipped, where it is missing."""

from pathlib import Path

SHARED = Path(__file__).parents[3] / "shared"
