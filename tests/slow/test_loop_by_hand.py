"""docs/loop_by_hand.py: what it prints is what one iteration made."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "docs" / "loop_by_hand.py"


def test_one_iteration_by_hand(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = (int(share) for share in re.findall(r"M_\d: (\d+)% of 32 right", done.stdout))
    assert re.search(r"48 pairs", done.stdout) and after > before
    assert list((tmp_path / "train").glob("checkpoint-*/adapter_model.safetensors"))


def test_it_is_short():
    assert len(SCRIPT.read_text().splitlines()) < 60
