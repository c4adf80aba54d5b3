"""Memory and speed of every phase on one NVIDIA card, on a random model of a public shape.

    bash benchmarks/gpu.sh                                        # Llama-3.1-8B's shape; results/gpu.md
    bash benchmarks/gpu.sh --shape llama-3.2-1b --cpu             # the same steps without a GPU
    bash benchmarks/gpu.sh --only sampling-gguf-48                # one step, again
    bash benchmarks/gpu.sh --report                               # the table alone, from what has been measured

A run takes at most `--minutes`. It measures step by step (benchmarks/gpu_steps.py). Each step is a process and leaves
one JSON file in `--out`, and the same command goes on with those that are missing. benchmarks/gpu_report.py writes the
tables in results/. Nothing is downloaded: weights are random, tokenizer and texts are made here. To measure with a real
tokenizer, write the model with `benchmarks.make_model --tokenizer` and give its folder as `--model`.

Every step keeps to 24 GiB, so a larger card can be used in place of one of that size. torch gets no more in a step's
process, and a step fails as soon as all processes on the card together hold more. NVML says how much they hold, so use
a card that nobody else uses. With --cpu a step's peak is its RAM. This module imports no torch, because a child's peak
of RAM begins with its parent's.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps import GGUF, MAKES, SHAPES, Step, command, steps
from benchmarks.measuring import machine, visible_gpu
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import read_json, write_json
from tpo_lite.machine.cards import GIB, cpu
from tpo_lite.machine.memory import Gpu, wait_until_free

START = time.monotonic()
ROOT = Path(__file__).resolve().parents[1]
CAP_GIB = 24.0
RESERVE = 15.0
"""Seconds of a run that are kept for its report."""
LOOK = 0.1
"""Seconds between two looks at the card."""
AGAIN = 1.5
"""How many times the time it had a step that was cut off is expected to take."""
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None)


@dataclass(frozen=True)
class Place:
    """Where a benchmark's files are and what it runs on."""

    out: Path
    """Holds STEP.json for each finished step, and what its process printed in log/."""
    model: Path
    device: str
    machine: dict[str, Any]
    card: Gpu | None

    @property
    def work(self) -> Path:
        """Return the folder that steps share."""
        return self.out / "work"


def find_card(device: str) -> Gpu | None:
    """Return the card, or None with --cpu. Raises `InputError` if there is none or NVML cannot be asked about it."""
    if device == "cpu":
        return None
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as NVML counts
    card = visible_gpu(device)
    if card is None:
        raise InputError(
            "no NVIDIA card was found, or nvidia-ml-py, which finds it, is missing (pip install nvidia-ml-py). Run "
            "bash benchmarks/gpu.sh on a machine with a card, or without one: bash benchmarks/gpu.sh --shape "
            "llama-3.2-1b --cpu."
        )
    return card


def describe(card: Gpu | None) -> dict[str, Any]:
    """Describe the machine: its name, bytes of memory, and the driver's version."""
    if card is None:
        return {"name": machine("cpu"), "memory": cpu().memory, "driver": None}
    name, driver = card.nvml.nvmlDeviceGetName(card.handle), card.nvml.nvmlSystemGetDriverVersion()
    return {"name": name, "memory": card.nvml.nvmlDeviceGetMemoryInfo(card.handle).total, "driver": driver}


def is_made(step: Step, place: Place) -> bool:
    """Return whether the last file that a step of `MAKES` writes exists, whoever made it."""
    last = {
        "weights": place.model / "tokenizer_config.json",
        "gguf": place.model / f"model-{GGUF}.gguf",
        "adapter": place.work / f"base-{GGUF}.gguf",
    }
    return last[step.kind].exists()


def read_results(out: Path) -> dict[str, dict[str, Any]]:
    """Read what was measured, or why it failed, by step."""
    return {path.stem: read_json(path) for path in sorted(out.glob("*.json"))}


def is_finished(step: Step, place: Place) -> bool:
    """Return whether a step need not run. One that failed counts as finished: `--only` runs it again."""
    if step.kind in MAKES:
        return is_made(step, place)
    path = place.out / f"{step.name}.json"
    return path.exists() and read_json(path)["setting"] == step.setting


def estimate(step: Step, place: Place) -> float:
    """Return the seconds that a step will take at most, as far as is known; more than it had if it was cut off."""
    had = place.out / "log" / f"{step.name}.cut"
    return max(step.seconds, AGAIN * float(had.read_text())) if had.exists() else step.seconds


def run_steps(planned: list[Step], place: Place, again: str | None, deadline: float) -> list[Step]:
    """Run what is not finished and fits before `deadline` (of `time.monotonic`); return the steps still open.

    The step named `again` is measured once more. Raises `TpoError` if a step fails that others need.
    """
    before = place.card.used() if place.card else 0
    waiting: list[Step] = []
    open_steps = [s for s in planned if not is_finished(s, place) or (s.name == again and s.kind not in MAKES)]
    if all(step.kind in MAKES and step.name != again for step in open_steps):
        open_steps = []  # no step is left that needs what they make
    for step in open_steps:
        needed = any(other.kind in MAKES for other in waiting)
        if needed or estimate(step, place) > deadline - time.monotonic():
            waiting.append(step)
            continue
        if place.card is not None:
            wait_until_free(place.card, before)
        if not run_step(step, place, deadline):
            waiting.append(step)
    return waiting


def run_step(step: Step, place: Place, deadline: float) -> bool:
    """Run one step and write its file; return False if it was cut off at `deadline`.

    Raises `TpoError` if a step fails that others need.
    """
    print(f"{step.name} (at most about {estimate(step, place):.0f} s): ", end="", flush=True)
    start = time.monotonic()
    said = place.out / "log" / f"{step.name}.log"
    said.parent.mkdir(parents=True, exist_ok=True)
    arguments = command(step, place.model, place.device, place.work, CAP_GIB)
    ended, most = watch([sys.executable, "-m", *arguments], environment(step, place), said, place.card, deadline)
    seconds = time.monotonic() - start
    had = said.with_suffix(".cut")
    if ended == "cut":
        had.write_text(f"{seconds:.1f}")
        print(f"cut off after {seconds:.0f} s")
        return False
    result: dict[str, Any] = {
        "step": step.name,
        "setting": step.setting,
        "machine": place.machine,
        "date": str(date.today()),
        "seconds": seconds,
        "card_peak": most,
    }
    if ended == "full":
        result["failed"] = f"all processes on the card together held {most / GIB:.1f} GiB, more than {CAP_GIB:g}"
    elif ended == "0" and (figures := last_line(said.with_suffix(".out"))) is not None:
        result["measured"] = figures
    else:
        result["failed"] = why_failed(said, ended)
    if "failed" in result and step.kind in ("floor", *MAKES):
        raise TpoError(f"{step.name}: {result['failed']}. Its whole output is in {said}.")
    had.unlink(missing_ok=True)
    write_json(place.out / f"{step.name}.json", result)
    print(f"failed: {result['failed']} ({said})" if "failed" in result else f"{seconds:.0f} s", flush=True)
    return True


def environment(step: Step, place: Place) -> dict[str, str]:
    """Return the environment of a step's process. unsloth may be in a folder of its own (see the Makefile)."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if "unsloth" in step.setting.values():
        paths.append(str(Path(sys.prefix) / "unsloth"))
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def watch(arguments: list[str], env: dict[str, str], said: Path, card: Gpu | None, deadline: float) -> tuple[str, int]:
    """Run a process until it ends, `deadline` comes ("cut") or the card's processes hold more than the cap ("full").

    Its errors go to `said`, and its output to the same name with the suffix .out. Returns its exit code as text, or one
    of the two words, and the most bytes that the card held (0 without a card).
    """
    most = 0
    with said.open("w") as errors, said.with_suffix(".out").open("w") as output:
        # In a process group, so that its children end with it. If this process is killed, the kernel ends it.
        child = subprocess.Popen(
            arguments,
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            while child.poll() is None:
                most = max(most, card.used() if card else 0)
                if most > CAP_GIB * GIB:
                    return "full", most
                if time.monotonic() > deadline:
                    return "cut", most
                time.sleep(LOOK)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    return str(child.returncode), most


def _end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def last_line(path: Path) -> dict[str, Any] | None:
    """Return the figures that a step prints as its last line; None if there are none."""
    lines = path.read_text(errors="replace").splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        return None


def why_failed(said: Path, code: str) -> str:
    """Return the last line that a process printed, without the paths of this machine."""
    lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    return last.replace(sys.executable, "python").replace(f"{ROOT}/", "")[:300]


def check_machine(place: Place) -> None:
    """Raise `InputError` if the folder holds another machine's figures."""
    for name, result in read_results(place.out).items():
        if result["machine"] != place.machine:
            raise InputError(
                f"{place.out} holds what {result['machine']['name']} measured ({name}), and this is "
                f"{place.machine['name']}. Give another --out."
            )


def write_report(options: argparse.Namespace, device: str, out: Path) -> None:
    """Write results/gpu.md, or the file of another shape or of a CPU."""
    from benchmarks.gpu_report import report, results_path

    path = options.results or results_path(options.shape, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(options.shape, device, read_results(out)))
    print(f"The table is in {path}.")


def chosen(planned: list[Step], only: str | None) -> list[Step]:
    """Return all steps, or one with those that it needs. Raises `InputError` for an unknown name."""
    if only is None:
        return planned
    if only not in {step.name for step in planned}:
        raise InputError(f"--only: there is no step {only!r}. Steps are {', '.join(step.name for step in planned)}.")
    return [step for step in planned if step.kind in MAKES or step.name == only]


def say_open(waiting: list[Step], place: Place, minutes: float) -> None:
    """Print what is still to be measured, and how, and what failed in this run or before."""
    for name, result in read_results(place.out).items():
        if "failed" in result:
            print(f"failed: {name} ({result['failed']}). Measure it again with --only {name}")
    for step in waiting:
        seconds = estimate(step, place)
        longer = "; give more --minutes" if seconds > 60 * minutes - RESERVE else ""
        print(f"open: {step.name} (at most about {seconds:.0f} s{longer})")
    if waiting:
        print(f"Go on with: bash benchmarks/gpu.sh {shlex.join(sys.argv[1:])}".rstrip())


def main() -> None:
    """Measure until time is up, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default=SHAPES[0])
    parser.add_argument("--cpu", action="store_true", help="without a GPU")
    parser.add_argument("--out", type=Path, help="folder of the measurements; default: runs/gpu-benchmark/SHAPE-DEVICE")
    parser.add_argument("--model", type=Path, help="folder of the model, made if there is none; default: OUT/model")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", metavar="STEP")
    parser.add_argument("--report", action="store_true", help="only write the report")
    parser.add_argument("--results", type=Path, help="the report's file; default: in benchmarks/results")
    options = parser.parse_args()
    device = "cpu" if options.cpu else "cuda"
    out = (options.out or ROOT / "runs/gpu-benchmark" / f"{options.shape}-{device}").resolve()
    try:
        if not options.report:
            planned = chosen(steps(options.shape, device), options.only)
            card = find_card(device)
            place = Place(out, (options.model or out / "model").resolve(), device, describe(card), card)
            check_machine(place)
            waiting = run_steps(planned, place, options.only, START + 60 * options.minutes - RESERVE)
            say_open(waiting, place, options.minutes)
        write_report(options, device, out)
    except TpoError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
