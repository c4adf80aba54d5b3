"""Phase "merge_report": what every merge would make of the checkpoint that an iteration chose.

No part of a run's iterations; `tpo-lite merge-report` starts it for each that is finished.
"""

from __future__ import annotations

from tpo_lite.phases.process import phase_main

if __name__ == "__main__":
    phase_main("merge_report")

import gc
import shutil
import time
from pathlib import Path
from typing import Any

from peft import PeftModel

from tpo_lite.adapters import difference, rank_of, read_adapter, write_adapter
from tpo_lite.machine.device import chosen_device
from tpo_lite.nf4 import load_base
from tpo_lite.run import KEPT, RunFolder
from tpo_lite.sampling.policy import policy
from tpo_lite.training.divergence import (
    divergence,
    log_probabilities,
    relative_norm,
    validation_sequences,
    with_adapter,
    with_fresh_block,
)
from tpo_lite.training.requantize import merge_to_disk


def run(run: RunFolder, arm: str, iteration: int) -> dict[str, Any]:
    """Makes M_{t+1} in each way, one after the other, in a folder that is removed again.

    Returns the relative norm of the update, its rank, and for each way KL(base + adapter || M_{t+1}) in nats a
    token, seconds and bytes on disk; `none` is M_t, what a merge that loses the whole update comes to. In a run
    with `fold` or `continue` the requantized models are the original base with the updates of all iterations
    so far; in one with `requantize` each is the last one's model with one update.
    """
    recipe = run.recipe
    folder = run.iteration(arm, iteration)
    if run.chosen(arm, iteration) == KEPT:
        return {"update_norm": 0.0, "rank": 0, "strategies": {}}
    on = policy(run, recipe, arm, iteration)
    chosen = folder / "train" / run.chosen(arm, iteration)
    new, scale = read_adapter(chosen)
    old = read_adapter(on.adapter)[0] if on.adapter else None
    device = chosen_device()
    sequences = validation_sequences(run, arm, iteration + 1)
    model = PeftModel.from_pretrained(load_base(on.model, device), chosen).eval()
    before = list(log_probabilities(model, sequences))
    summary = {"update_norm": relative_norm(model, difference(new, old), scale), "rank": rank_of(new)}
    strategies: dict[str, dict[str, float]] = {}
    work = folder / "merge-report"

    def record(name: str, after: Any, seconds: float, path: Path) -> None:
        kl = divergence(before, log_probabilities(after, sequences))
        strategies[name] = {"kl": kl, "seconds": seconds, "bytes": size(path)}

    if old is not None:
        record("none", with_adapter(model, old, scale, "none"), 0.0, work / "none")
    else:
        with model.disable_adapter():
            record("none", model, 0.0, work / "none")
    for name in ("fold", "continue"):
        start = time.monotonic()
        write_adapter(work / name, new, scale, on.model, like=chosen)
        seconds = time.monotonic() - start
        written = read_adapter(work / name)[0]
        if name == "fold":
            written = with_fresh_block(model, written, recipe, arm, iteration + 1)
        record(name, with_adapter(model, written, scale, name), seconds, work / name)
    del model
    for base in ("w16", "nf4"):
        start = time.monotonic()
        merge_to_disk(on.model, new, scale, work / base, base)
        seconds = time.monotonic() - start
        gc.collect()  # the model before: its parts refer to each other
        record(f"requantize {base}", load_base(str(work / base), device).eval(), seconds, work / base)
        shutil.rmtree(work / base)  # an 8B model is 16 GB
    shutil.rmtree(work)
    return summary | {"strategies": strategies}


def size(folder: Path) -> int:
    """Bytes of the files of a folder; 0 for one that is not there."""
    return sum(file.stat().st_size for file in folder.glob("*"))
