"""What the server of `warm_train` imports before it forks: all that a phase imports on its way.

Every iteration of its runs ends with its last checkpoint, as in `tiny_run.train_here`. Each record takes a while, so
that there is time to kill a phase in the middle of its work.
"""

import importlib
import os
import time
from typing import Any

from tests.helpers.tiny_run import choosing
from tpo_lite.phase_order import PHASES
from tpo_lite.phases.process import QUIET
from tpo_lite.records import JsonlAppender

os.environ |= QUIET  # libraries read it when they are imported

LIBRARIES = ("bitsandbytes", "llama_cpp", "peft", "transformers.models.llama.modeling_llama", "trl.trainer.dpo_trainer")
for name in (*LIBRARIES, *(f"tpo_lite.phases.{phase}" for phase in ("prepare", *PHASES))):
    importlib.import_module(name)

append = JsonlAppender.append


def append_slowly(self: JsonlAppender, *records: Any) -> None:
    """Append, and give the others time to look."""
    append(self, *records)
    time.sleep(0.02)


JsonlAppender.append = append_slowly  # type: ignore[method-assign]
CHOOSING = choosing()  # kept, as it ends when it is collected
CHOOSING.__enter__()
