"""Thought Preference Optimization (arXiv 2410.10630) for one consumer GPU.

The names below are the public API. Each is imported when it is first used, so that `import tpo_lite` takes no
time and loads no model library. `docs/loop_by_hand.py` shows them at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
