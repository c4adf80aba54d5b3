"""The run folder: where everything of a run lies, what is finished, and who may write.

    RUN/recipe.yaml                         what the run was asked for; values may be "auto"
    RUN/settled.yaml                        what they were settled to for the machine, the device, and the date
    RUN/plan.json RUN/limits.json           what was planned for them; smaller batches, if memory ran out
    RUN/base/                               a GGUF given as `model`, dequantized to 16 bits
    RUN/base-Q4_K_M.gguf                    any other `model` as engine gguf samples it; base-F16.gguf if unquantized
    RUN/instructions/                       validation.jsonl, test.jsonl, iteration-0.jsonl, ...
        done/prepare.json done/seconds.json
    RUN/judge-calls RUN/judge-replies.jsonl with an openai judge: the number of requests, and its verdicts
    RUN/select-judge-calls RUN/select-judge-replies.jsonl
                                            the same of `select.judge`
    RUN/<arm>/base-validation.jsonl         M_0's answers to the validation slice
    RUN/<arm>/base-test.jsonl               and to the test slice
    RUN/direct/base-thinking-vs-direct.jsonl
                                            the judge's verdicts on those of the two arms
    RUN/<arm>/warm_start/                   from the base to M_0, with `warm_start`
        probe.jsonl before.jsonl            what the base answers before: a few instructions, and a held-out slice
        samples.jsonl examples.jsonl        outputs with markers put in, and those that are trained on
        train/ log.json adapter/            their training, and M_0's adapter
    RUN/<arm>/iteration-<t>/                made from M_t, ends in M_{t+1}
        samples.jsonl judgements.jsonl scores.jsonl pairs.jsonl
        train/checkpoint-<step>/ train/log.json
        validation/<checkpoint>.jsonl       each checkpoint's answers to the validation slice
        validation/<checkpoint>-vs-M_<n>.jsonl
                                            the judge's verdicts on them against those of M_t and M_0
        validation.json                     win rates and the chosen checkpoint
        crosscheck/<checkpoint>-vs-M_<n>.jsonl
                                            with `select.judge`: the training judge's verdicts on the same
        adapter/                            M_{t+1}'s adapter; with `merge: requantize` instead:
        model/ base-Q4_K_M.gguf             the merged M_{t+1}, and the same as engine gguf samples it
        validation/merged.jsonl             the merged M_{t+1}'s answers to the validation slice
        test/answers.jsonl                  M_{t+1}'s answers to the test slice, unless it is M_t
        test/M_{t+1}-vs-{M_0,M_base}.jsonl  the judge's verdicts on them against those before the loop and a warm start
        test/thinking-vs-direct.jsonl       and, in the direct arm, on those of the two arms
        done/<phase>.json                   a finished phase: its summary, outputs and peak memory
        done/seconds.json                   wall time of every phase
    RUN/results.json RUN/report.html        the figures; the same for people, with report-data/
    RUN/log/ RUN/evaluation/                tracebacks by phase; what `tpo-lite eval` adds, by M_t
    RUN/.run.lock RUN/.phase.lock           held by the orchestrator and by the phase that runs

The files are the state: a phase is finished when its `done/` file and the outputs named there exist, and a unit
inside a phase is finished when its line is in the JSONL file. So to repair a damaged file, delete it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from tpo_lite.errors import DISK_FULL, InputError, TpoError
from tpo_lite.files import checksum, read_json, read_sealed, read_yaml, write_atomically, write_json, write_sealed
from tpo_lite.kinds import Arm, HeldOut
from tpo_lite.machine.device import Place, default_place
from tpo_lite.phase_order import OUTPUTS, PHASES, WARM_PHASES
from tpo_lite.recipe import Recipe, differences, parse_as, parse_recipe, with_keys
from tpo_lite.settled import AUTO_KEYS, Limits, SettledRecipe, as_settled, limited, open_keys, unknown_before

SETTLED_VERSION = 1
"""Version of settled.yaml."""

KEPT = "M_t"
"""What an iteration chooses when the judge prefers none of its checkpoints: M_{t+1} is M_t."""


class _Started(NamedTuple):
    """What settled.yaml holds."""

    recipe: SettledRecipe
    place: Place
    day: date | None


class RunFolder:
    """Paths and state of one run."""

    def __init__(self, root: Path):
        self.root = root

    def load_recipe(self) -> Recipe:
        """Read the recipe as the run was asked for, which may say "auto". Raises `InputError` where there is none."""
        path = self.root / "recipe.yaml"
        if not path.exists():
            raise InputError(
                f"{self.root} is not a run folder: it has no recipe.yaml. "
                f"Start one with `tpo-lite train --out {self.root}`."
            )
        data = read_yaml(path)
        return with_keys(parse_recipe(data, str(path)), unknown_before(data))

    def as_begun(self, recipe: Recipe) -> Recipe:
        """Return `recipe` as the version that began this run would have read it: without keys that came later.

        So a run that an earlier version began goes on under its own recipe; keys that may be "auto" are filled in by
        `filled_from`. A folder in which nothing has been computed leaves `recipe` as it is.
        """
        path = self.root / "recipe.yaml"
        if not path.exists() or not self.computed():
            return recipe
        return with_keys(recipe, {k: v for k, v in unknown_before(read_yaml(path)).items() if k not in AUTO_KEYS})

    def load_started(self) -> SettledRecipe:
        """Read the settled recipe that the run was started with.

        For a folder of an earlier version, which has no settled.yaml, it is made of recipe.yaml's own values. Raises
        `InputError` where that leaves a value "auto".
        """
        recipe = self.load_recipe()
        if started := self._read_settled():
            return started.recipe
        if left := open_keys(recipe):
            raise InputError(
                f"{self._settled_path} is missing, and recipe.yaml leaves {', '.join(left)} auto. "
                "Use --new to move the folder aside."
            )
        return as_settled(recipe)

    def load_recorded(self) -> SettledRecipe | None:
        """Read the settled recipe of a run that goes on; None if there is no run, or nothing has been computed yet."""
        return self.load_started() if (self.root / "recipe.yaml").exists() and self.computed() else None

    def load_settled(self) -> SettledRecipe:
        """Read the settled recipe that phases run with: that of `load_started`, within `limits`."""
        return limited(self.load_started(), self.limits)

    def load_place(self) -> Place:
        """Read where the run works; for a folder of an earlier version, a GPU if this machine has one."""
        started = self._read_settled()
        return started.place if started else default_place()

    def load_day(self) -> date | None:
        """Read the date on which the run started, which chat templates get for today's.

        None for a folder of an earlier version: there templates get today's date, as they did, until `train` goes on
        and records one.
        """
        started = self._read_settled()
        return started.day if started else None

    @property
    def _settled_path(self) -> Path:
        return self.root / "settled.yaml"

    def _read_settled(self) -> _Started | None:
        """Read settled.yaml; None where there is none. Raises `InputError` for anything that does not belong there."""
        if not self._settled_path.exists():
            return None
        data: dict[str, Any] = {"version": None, "device": None, "gpu": None, "date": None, "recipe": None}
        data |= read_yaml(self._settled_path)
        if data["version"] != SETTLED_VERSION:
            raise InputError(
                f"{self._settled_path} has version {data['version']}, and this tpo_lite reads version "
                f"{SETTLED_VERSION}. Go on with the tpo_lite that wrote it, or use --new to move the folder aside."
            )
        gpu, day = data["gpu"], data["date"]
        if not (gpu is None or isinstance(gpu, int)) or data["device"] != Place(gpu).device:
            raise InputError(
                f"{self._settled_path}: device {data['device']!r} and gpu {gpu!r} do not fit together. "
                "Write `device: cpu` and `gpu: null`, or `device: cuda` and the GPU's index."
            )
        if day is not None and type(day) is not date:
            raise InputError(
                f"{self._settled_path}: date {day!r} is not a date. Write the day on which the run started, such as "
                "`date: 2026-01-31`."
            )
        recipe = parse_as(SettledRecipe, data["recipe"], str(self._settled_path))
        return _Started(with_keys(recipe, unknown_before(data["recipe"])), Place(gpu), day)

    def _write_settled(self, settled: SettledRecipe, place: Place, day: date | None = None) -> None:
        """Write settled.yaml with `day`, or with today's date if there is none yet."""
        data = {
            "version": SETTLED_VERSION,
            "device": place.device,
            "gpu": place.gpu,
            "date": day or datetime.now().date(),
            "recipe": settled.model_dump(),
        }
        write_atomically(self._settled_path, yaml.safe_dump(data, sort_keys=False))

    def settle_old(self, place: Place | None = None) -> None:
        """Write settled.yaml into a folder of an earlier version, which has none, and say so in one line."""
        if self._settled_path.exists():
            return
        place = place or default_place()
        self._write_settled(self.load_started(), place)
        where = "the CPU" if place.gpu is None else f"GPU {place.gpu}"
        print(
            f"{self.root} was made by an earlier version of tpo_lite: its settings stay as they are, "
            f"and settled.yaml now records them and {where}.",
            flush=True,
        )

    @property
    def limits(self) -> Limits:
        """The values, by the recipe's key, to which batches that did not fit the memory were cut down."""
        path = self.root / "limits.json"
        return dict(read_json(path)) if path.exists() else {}

    def limit(self, limits: Limits) -> None:
        """Add to `limits`, for all phases and iterations to come."""
        write_json(self.root / "limits.json", self.limits | limits)

    def start(self, recipe: Recipe, settled: SettledRecipe, place: Place, *, new: bool) -> None:
        """Make the folder for `recipe`, which was `settled` for `place`, or check that it was made for the same one.

        While nothing has been computed, another recipe takes the place of the first. A run may go on at another place.
        With `new`, a folder that is there is moved aside, never overwritten. Raises `InputError` with what changed.
        """
        try:
            if new and (self.root / "recipe.yaml").exists():
                self._move_aside()
            if not (self.root / "recipe.yaml").exists():
                self._make(recipe, settled, place)
            elif not self.computed():
                self._start_over(recipe, settled, place)
            else:
                self._go_on(settled, place)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise InputError(f"--out {self.root} cannot be used ({error.strerror}). Give another folder.") from error

    def _move_aside(self) -> None:
        root, number = self.root.resolve(), 1
        while (aside := root.with_name(f"{root.name}.old-{number}")).exists():
            number += 1
        with self.lock("run"), self.lock("phase"):
            root.rename(aside)

    def _make(self, recipe: Recipe, settled: SettledRecipe, place: Place) -> None:
        if self.root.exists() and any(self.root.iterdir()):
            raise InputError(f"{self.root} is neither empty nor a run folder. Give another --out.")
        self.root.mkdir(parents=True, exist_ok=True)
        self._write_recipes(recipe, settled, place)

    def _start_over(self, recipe: Recipe, settled: SettledRecipe, place: Place) -> None:
        """Take other settings in a folder in which nothing has been computed."""
        started = self._read_settled()
        same = started is not None and (self.load_recipe(), started.recipe, started.place) == (recipe, settled, place)
        if not same:
            with self.lock("run"):
                (self.root / "limits.json").unlink(missing_ok=True)
                self._write_recipes(recipe, settled, place)
        elif started is not None and started.day is None:
            with self.lock("run"):
                self._write_settled(settled, place)

    def _go_on(self, settled: SettledRecipe, place: Place) -> None:
        """Check that a run in which something has been computed keeps its settings, and record its place and date."""
        started = self.load_started()
        if changed := differences(started, settled):
            lines = "\n".join(f"  {line}" for line in changed)
            raise InputError(
                f"{self.root} was started with other settings:\n{lines}\n"
                "Use the old settings to go on, --out for another folder, or --new to move this one aside."
            )
        self.settle_old(place)
        if self.load_place() != place or self.load_day() is None:
            with self.lock("run"):
                self._write_settled(started, place, self.load_day())

    def computed(self) -> bool:
        """Return whether there is anything that depends on the recipe."""
        return self.is_done("prepare", None, 0) or any((self.root / arm).exists() for arm in get_args(Arm))

    def _write_recipes(self, recipe: Recipe, settled: SettledRecipe, place: Place) -> None:
        asked = recipe.model_dump(include=set(Recipe.model_fields))  # a settled recipe has more
        write_atomically(self.root / "recipe.yaml", yaml.safe_dump(asked, sort_keys=False))
        self._write_settled(settled, place)

    def iteration(self, arm: Arm, iteration: int) -> Path:
        """Return the folder of iteration t, from M_t to M_{t+1}."""
        return self.root / arm / f"iteration-{iteration}"

    def warm_start(self, arm: Arm) -> Path:
        """Return the folder of an arm's warm start."""
        return self.root / arm / "warm_start"

    def warm_adapter(self, arm: Arm) -> Path | None:
        """Return M_0's adapter, or None where M_0 is the base itself."""
        adapter = self.warm_start(arm) / "adapter"
        return adapter if adapter.exists() else None

    def instructions(self, name: str) -> Path:
        """Return the file of an instruction slice: "validation", "test", "warm_start" or "iteration-<t>"."""
        return self.root / "instructions" / f"{name}.jsonl"

    def chosen(self, arm: Arm, iteration: int) -> str:
        """Return what iteration t chose for M_{t+1}: a checkpoint's name, or `KEPT`."""
        return str(read_json(self.iteration(arm, iteration) / "validation.json")["chosen"])

    def trained(self, arm: Arm, model: int) -> int:
        """Return the number of the model that M_model is: an earlier one if later iterations kept M_t."""
        while model > 0 and self.chosen(arm, model - 1) == KEPT:
            model -= 1
        return model

    def base_answers(self, arm: Arm, held_out: HeldOut) -> Path:
        """Return the file of M_0's answers to a held-out slice."""
        return self.root / arm / f"base-{held_out}.jsonl"

    def test_of(self, arm: Arm, model: int) -> Path:
        """Return the file of M_model's answers to the test slice."""
        model = self.trained(arm, model)
        return self.iteration(arm, model - 1) / "test" / "answers.jsonl" if model else self.base_answers(arm, "test")

    def match_with(self, arm: Arm, model: int, base: Literal["M_0", "M_base"]) -> Path:
        """Return the file of the verdicts on M_model's answers to the test slice against those of a model before it."""
        made = max(self.trained(arm, model), 1)  # an M_1 that is M_0 plays itself, in iteration 0
        return self.iteration(arm, made - 1) / "test" / f"M_{made}-vs-{base}.jsonl"

    def match_of_arms(self, model: int) -> Path:
        """Return the file of the verdicts on the thinking arm's M_model against the direct arm's.

        It is that of an earlier iteration if neither arm has changed since.
        """
        made = max(self.trained("thinking", model), self.trained("direct", model))
        name = "thinking-vs-direct.jsonl"
        return self.iteration("direct", made - 1) / "test" / name if made else self.root / "direct" / f"base-{name}"

    def validation_of(self, arm: Arm, model: int) -> Path:
        """Return the file of M_model's answers to the validation slice."""
        model = self.trained(arm, model)
        if model == 0:
            return self.base_answers(arm, "validation")
        if self.load_started().merge == "requantize":
            return self.iteration(arm, model - 1) / "validation" / "merged.jsonl"
        return self.checkpoint_validation(arm, model - 1)

    def checkpoint_validation(self, arm: Arm, iteration: int) -> Path:
        """Return the file of the validation samples of the checkpoint that an iteration chose."""
        return self.iteration(arm, iteration) / "validation" / f"{self.chosen(arm, iteration)}.jsonl"

    def done_path(self, phase: str, arm: Arm | None, iteration: int) -> Path:
        """Return the file that says that a phase is finished."""
        if arm is None:
            folder = self.root / "instructions"
        else:
            folder = self.warm_start(arm) if phase in WARM_PHASES else self.iteration(arm, iteration)
        return folder / "done" / f"{phase}.json"

    def is_done(self, phase: str, arm: Arm | None, iteration: int) -> bool:
        """Return whether a phase is finished and all its outputs are still there."""
        path = self.done_path(phase, arm, iteration)
        return path.exists() and all((path.parent.parent / name).exists() for name in read_sealed(path)["outputs"])

    def mark_done(
        self, phase: str, arm: Arm | None, iteration: int, summary: dict[str, Any], peak_bytes: dict[str, int]
    ) -> None:
        """Write a finished phase's summary, the checksums of its outputs and its process's peak memory."""
        path = self.done_path(phase, arm, iteration)
        folder = path.parent.parent
        files = [file for glob in OUTPUTS.get(phase, ()) for file in sorted(folder.glob(glob))]
        outputs = {str(file.relative_to(folder)): checksum(file) for file in files}
        write_sealed(path, {"phase": phase, "summary": summary, "outputs": outputs, "peak_bytes": peak_bytes})

    def done(self, phase: str, arm: Arm | None, iteration: int) -> dict[str, Any]:
        """Read what `mark_done` wrote."""
        return read_sealed(self.done_path(phase, arm, iteration))

    def record_seconds(self, phase: str, arm: Arm | None, iteration: int, seconds: float) -> None:
        """Add the wall time of one process of a phase; a killed and resumed phase has several."""
        total = self.seconds(arm, iteration, phase)
        total[phase] = total.get(phase, 0.0) + seconds
        write_json(self._seconds_path(arm, iteration, phase), total)

    def seconds(self, arm: Arm | None, iteration: int, beside: str = PHASES[0]) -> dict[str, float]:
        """Read the wall time in seconds of each phase in the folder of the phase `beside`."""
        path = self._seconds_path(arm, iteration, beside)
        return dict(read_json(path)) if path.exists() else {}

    def _seconds_path(self, arm: Arm | None, iteration: int, beside: str) -> Path:
        return self.done_path(beside, arm, iteration).with_name("seconds.json")

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the folder's lock `name` ("run" or "phase"). Raises `TpoError` if another process does."""
        self.root.mkdir(parents=True, exist_ok=True)
        # Without truncation, so that the holder's process id stays readable for the message below.
        with open(self.root / f".{name}.lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.seek(0)
                raise TpoError(
                    f"{self.root} is in use by process {file.read().strip() or 'unknown'}. "
                    "Wait until it ends, or give another --out."
                ) from error
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
