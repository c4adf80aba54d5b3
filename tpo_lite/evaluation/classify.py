"""Categories of instructions, by a language model that can name nothing else (the paper's 20 and Miscellaneous).

The prompt is the paper's. Nothing is sampled: the probability of each category comes from the logits where the names
differ, and the likeliest is taken. A file of categories is a cache too: an instruction is known by the hash of its
text, so no one is asked about twice.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tpo_lite.calibration.output_file import file_print, held
from tpo_lite.errors import InputError
from tpo_lite.evaluation.layout import aligned, between
from tpo_lite.evaluation.outputs import Outputs
from tpo_lite.files import read_rows
from tpo_lite.groups import in_groups
from tpo_lite.hub import judge_path
from tpo_lite.instructions.leakage import fingerprint
from tpo_lite.instructions.load import load
from tpo_lite.intervals import Share, share
from tpo_lite.progress import progress
from tpo_lite.records import Instruction, UnitRecord, read_jsonl
from tpo_lite.run import RunFolder

CATEGORIES = (
    "General Knowledge",
    "Math and Calculations",
    "Programming and Coding",
    "Reasoning and Problem-Solving",
    "Creative Writing",
    "Content Writing",
    "Art and Design",
    "Language and Translation",
    "Research and Analysis",
    "Conversational Dialogue",
    "Data Analysis and Visualization",
    "Business and Finance",
    "Education and Learning",
    "Science and Technology",
    "Health and Wellness",
    "Personal Development",
    "Entertainment and Humor",
    "Travel and Leisure",
    "Marketing and Sales",
    "Game Development",
    "Miscellaneous",
)
TEMPLATE = (
    "Below is an instruction that I would like you to analyze:\n\n{instruction}\n\n"
    "Categorize the instruction above into one of the following categories:\n"
    + "\n".join(CATEGORIES)
    + "\n\nBe sure to provide the exact category name without any additional text."
)
CONTEXT = 8192
"""Tokens that all instructions decoded together may hold; a longer one has no category."""
AT_ONCE = 8
"""Instructions classified as one unit of work; a kill costs at most these."""


@dataclass(frozen=True)
class Classified(UnitRecord):
    """An instruction with its category; a line of `tpo-lite classify`'s output."""

    instruction: str
    """Its text, with what comes before it in a conversation."""
    category: str | None
    """The likeliest of `CATEGORIES`; None if the instruction did not fit the model."""
    probability: float | None
    """The model's probability of it among all."""
    by: str
    """The model's name, and a hash of the model and the prompt."""


@dataclass(frozen=True)
class Categories:
    """What came of a set of instructions."""

    counts: dict[str, Share]
    """The share of each category among those that have one."""
    agreement: Share
    """How often the category is the one that the source names, where it names one of `CATEGORIES`."""
    by_category: dict[str, Share]
    """The same for each category that the source names."""
    overlong: int
    """Instructions that did not fit the model."""


def instructions_in(source: str) -> dict[str, Instruction]:
    """Return the instructions of a source, each once, by the hash of its text.

    `source` is what a recipe's may be, or a run folder, which stands for all its slices. Raises `InputError` for a
    source that cannot be read.
    """
    run = RunFolder(Path(source))
    if not (run.root / "recipe.yaml").is_file():
        found: Iterable[Instruction] = load(source).instructions
    else:
        files = sorted(run.instructions("*").parent.glob("*.jsonl"))
        found = [each for path in files for each in read_jsonl(path, Instruction)]
    by_id: dict[str, Instruction] = {}
    for each in found:
        by_id.setdefault(fingerprint(each.conversation()), each)
    if not by_id:
        raise InputError(f"{source} has no instructions yet. Give a run that has prepared its own, or a file of them.")
    return by_id


def classify(instructions: Mapping[str, Instruction], model: str, out: Path, gpu_layers: int) -> list[Classified]:
    """Return the category of each instruction; those that `out` holds are not asked about again.

    `instructions` by the hash of the text, `model` a GGUF file as a recipe's judge names one. Raises `InputError` for a
    file that another model or prompt wrote, and for a model that cannot write the categories.
    """
    path = judge_path(model, "--model")
    asked = hashlib.sha256(f"{file_print(path)}\n{TEMPLATE}".encode()).hexdigest()[:16]
    by = f"{path.name} {asked}"
    with held(out):
        finished = _finished(out, by)
        missing = [key for key in instructions if key not in finished]
        if missing:
            classifier = Classifier(path, gpu_layers)
            todo = {key: instructions[key].conversation() for key in missing}
            with progress("classify", len(instructions), "instructions", len(instructions) - len(missing)) as advance:

                def answer(group: list[str]) -> list[Classified]:
                    return [
                        Classified(fingerprint(text), text, *found, by)
                        for text, found in zip(group, classifier.categories(group), strict=True)
                    ]

                for _ in in_groups(out, todo, finished, AT_ONCE, answer, lambda record: advance(1)):
                    pass
    return [finished[key] for key in instructions]


def _finished(out: Path, by: str) -> dict[str, Classified]:
    try:
        there = list(read_jsonl(out, Classified))
    except InputError as error:
        # Not the reader's own message: it says to delete the file, which may be anything.
        raise InputError(f"--out {out} holds something other than categories. Give another file.") from error
    for record in there:
        if record.by != by:
            raise InputError(f"--out {out} was written by {record.by!r}, not {by!r}. Give another file.")
    return {record.id: record for record in there}


class Classifier:
    """A GGUF language model that chooses among `CATEGORIES`.

    Raises `InputError` for a model without chat template, and for one that cannot hold the question.
    """

    def __init__(self, path: Path, gpu_layers: int):
        from tpo_lite.judges.gguf_prompt import GgufPrompt
        from tpo_lite.llamacpp.decoder import LlamaCpp

        self._decoder = LlamaCpp(path, n_ctx=CONTEXT, n_gpu_layers=gpu_layers)
        self._prompt = GgufPrompt(self._decoder, TEMPLATE, ("instruction",), CATEGORIES, around=("", ""))
        if self._prompt.question({"instruction": ""}, self._decoder.max_leaf, False) is None:
            raise InputError(
                f"--model {path}: it reads {self._decoder.max_leaf} tokens at most, and the question alone takes more. "
                "Use another model."
            )

    def categories(self, texts: Sequence[str]) -> list[tuple[str | None, float | None]]:
        """Return the likeliest category of each instruction and its probability; None for one that is too long."""
        from tpo_lite.judges.gguf_prompt import ask

        questions = [self._prompt.question({"instruction": text}, self._decoder.max_leaf, False) for text in texts]
        found: list[tuple[str | None, float | None]] = []
        for answer in ask(self._decoder, questions):
            if answer is None:
                found.append((None, None))
            else:
                best = int(np.argmax(answer.probabilities))
                found.append((CATEGORIES[best], float(answer.probabilities[best])))
        return found


def tally(instructions: Mapping[str, Instruction], classified: Sequence[Classified]) -> Categories:
    """Count the categories, and how often they are those that the source names."""
    known = [each for each in classified if each.category is not None]
    counts = Counter(each.category for each in known)
    named = [(instructions[each.id].category, each.category) for each in known]
    named = [(given, found) for given, found in named if given in CATEGORIES]
    return Categories(
        {name: share(counts[name], len(known)) for name in CATEGORIES if counts[name]},
        share(sum(given == found for given, found in named), len(named)),
        {
            name: share(sum(found == name for found in group), len(group))
            for name in CATEGORIES
            if (group := [found for given, found in named if given == name])
        },
        len(classified) - len(known),
    )


def as_text(found: Categories) -> str:
    """Return the counts as lines for a terminal."""
    rows = [["category", "%", "95 % interval", "n"]]
    rows += [[name, *_cells(value), str(round((value.value or 0) * value.n))] for name, value in found.counts.items()]
    lines = [aligned(rows)]
    if found.overlong:
        lines.append(f"{found.overlong} instructions did not fit the model and have no category")
    if found.agreement.n:
        rows = [["the source names", "agreement %", "95 % interval", "n"]]
        rows += [[name, *_cells(value), str(value.n)] for name, value in found.by_category.items()]
        rows.append(["all", *_cells(found.agreement), str(found.agreement.n)])
        lines += ["", aligned(rows)]
    return "\n".join(lines)


def _cells(found: Share) -> list[str]:
    return [f"{100 * (found.value or 0):.1f}", between(100 * found.low, 100 * found.high, 1)]


def categorized(outputs: Outputs, path: Path) -> Outputs:
    """Return outputs with the categories that a file of `tpo-lite classify` gives to their instructions.

    Raises `InputError`, with the row, for a line without an instruction, a name that is no category, a probability that
    is none, an instruction that comes twice, and an output whose instruction is not in the file.
    """
    known: dict[str, str | None] = {}
    for where, row in read_rows(path, "instruction"):
        text, category, probability = row.get("instruction"), row.get("category"), row.get("probability")
        if not isinstance(text, str):
            raise InputError(f"{where} has no text as instruction. Give a file that tpo-lite classify wrote.")
        if category is not None and category not in CATEGORIES:
            raise InputError(f"{where}: {category!r} is no category. Give one of {', '.join(CATEGORIES[:3])}, ...")
        if probability is not None and not _is_probability(probability):
            raise InputError(
                f"{where}: probability {probability!r} is not between 0 and 1. Fix that line or remove it."
            )
        if fingerprint(text) in known:
            raise InputError(f"{where} has the instruction of an earlier line again. Keep one of them.")
        known[fingerprint(text)] = category
    by_id = {}
    for key, output in outputs.by_id.items():
        if (hashed := fingerprint(output.instruction)) not in known:
            raise InputError(
                f"{path} lacks the instruction of {output.where}, {output.instruction[:60]!r}. Classify the same "
                "instructions: tpo-lite classify."
            )
        by_id[key] = dataclasses.replace(output, category=known[hashed])
    return Outputs(outputs.model, by_id)


def _is_probability(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
