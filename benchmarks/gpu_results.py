"""What `benchmarks.gpu` has measured, ready for its tables: figures, ratios, and what the plan predicts for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_floors import Floor, floor_of
from benchmarks.gpu_steps import GGUF, OPTIMIZER, RANK, Step, sizes_of, steps
from tpo_lite.machine.cards import Card, choose_card, cpu, named_card
from tpo_lite.plan.needs import Need, needs
from tpo_lite.plan.shapes import GGUF_BITS, PUBLISHED, JudgeShape, ModelShape, shape_of

NOT_MEASURED = "not measured"
SLACK = 0.03
"""Two peaks that differ by no more than this share count as the same memory."""


@dataclass(frozen=True)
class Benchmark:
    """Everything that the tables are made from."""

    shape: str
    device: str
    machine: dict[str, Any] | None
    """None until something is measured."""
    results: dict[str, dict[str, Any]]
    """The steps' files by name; only those that were measured with today's sizes."""
    steps: list[Step]
    model: ModelShape
    card: Card
    """The card that was measured, else the one that the plan is for."""

    def measured(self, name: str) -> dict[str, Any] | None:
        """Return the figures of a step; None if it failed or has not run."""
        return self.results.get(name, {}).get("measured")

    def state(self, name: str) -> str:
        """Return what is shown instead of the figures of a step that has none."""
        return "failed" if "failed" in self.results.get(name, {}) else NOT_MEASURED

    def of(self, kind: str) -> list[Step]:
        """Return the steps of a kind, in their order."""
        return [step for step in self.steps if step.kind == kind]

    def peak(self, step: Step) -> int | None:
        """Return the most bytes that a step's process held: of GPU memory, or of RAM on a CPU."""
        found = self.measured(step.name)
        return found and found["peak"]["host" if self.device == "cpu" else "gpu"]

    def floor(self, step: Step) -> Floor | None:
        """Return the least time of a step; None until it and the machine's rates are measured."""
        found, rates = self.measured(step.name), self.measured("floor")
        return found and rates and floor_of(step.kind, step.setting, found, rates, self.model, self.card)

    @property
    def judge(self) -> JudgeShape:
        """Return the shape of the GGUF; until it is measured, its size follows from its type's bits per weight."""
        for step in self.of("judging"):
            if found := self.measured(step.name):
                return JudgeShape(self.model, found["file_bytes"], found["gpu_bytes"])
        model, bits = self.model, GGUF_BITS[GGUF]
        size, embedding = (int(weights * bits / 8) for weights in (model.parameters, model.embedding_parameters))
        return JudgeShape(model, size, size if model.tied else size - embedding)

    def plan(self, step: Step) -> Need | None:
        """Return what the plan predicts for a step that does what a phase does; else None."""
        if step.recipe is None:
            return None
        return needs(step.recipe, self.model, self.judge, self.card)[step.phase]


def benchmark(shape: str, device: str, results: dict[str, dict[str, Any]]) -> Benchmark:
    """Return the benchmark of these files; what was measured with other sizes than today's is left out."""
    planned = steps(shape, device)
    settings = {step.name: step.setting for step in planned}
    current = {name: result for name, result in results.items() if result["setting"] == settings.get(name)}
    machine = next((result["machine"] for result in current.values()), None)
    return Benchmark(shape, device, machine, current, planned, model_of(shape), card_of(device, machine))


def card_of(device: str, machine: dict[str, Any] | None) -> Card:
    """Return the card that was measured, or else one of 24 GB; the CPU's figures for a CPU."""
    if device == "cpu":
        return cpu()
    return named_card(machine["name"], machine["memory"]) if machine else choose_card(24)


def model_of(shape: str) -> ModelShape:
    """Return the sizes of a shape by its name."""
    if shape in PUBLISHED:
        return shape_of(PUBLISHED[shape], shape)
    from benchmarks.shapes import SHAPES as CONFIGS

    return shape_of(CONFIGS[shape].to_dict(), shape)


def rate(of: Benchmark, step: Step) -> float | None:
    """Return the tokens per second of a sampling step; None until it is measured."""
    found = of.measured(step.name)
    return found and found["tokens"] / found["seconds"]


def speeds(of: Benchmark) -> list[Step]:
    """Return the sampling steps in which samples end, so that their speeds can be compared."""
    return [step for step in of.of("sampling") if step.setting["mean_length"]]


def plain_step(of: Benchmark, batch: int) -> Step | None:
    """Return the step of plain `generate` with a batch size."""
    found = (s for s in speeds(of) if s.setting["engine"] == "generate" and s.setting["batch"] == batch)
    return next(found, None)


def best_sampling(of: Benchmark) -> tuple[Step, float] | None:
    """Return the fastest step that takes at most the memory of `generate` plus 3 %, and how many times as fast it is.

    None until `generate` and another engine are measured.
    """
    plain = plain_step(of, sizes_of(of.shape, of.device).batch)
    if of.measured(plain.name) is None:
        return None
    room = (1 + SLACK) * of.peak(plain)
    others = [s for s in speeds(of) if of.measured(s.name) and s.setting["engine"] != "generate" and of.peak(s) <= room]
    fastest = max(others, key=lambda step: rate(of, step), default=None)
    return fastest and (fastest, rate(of, fastest) / rate(of, plain))


def dpo_step(of: Benchmark, path: str, rank: int = RANK, optimizer: str = OPTIMIZER) -> Step | None:
    """Return a training step by what it trains with."""
    wanted = {"path": path, "rank": rank, "optimizer": optimizer}
    return next((step for step in of.of("training") if wanted.items() <= step.setting.items()), None)


def trained(of: Benchmark, step: Step | None) -> float | None:
    """Return a training step's tokens per second, both sides of a pair counted; None until it is measured."""
    found = step and of.measured(step.name)
    return found and found["tokens_per_second"]


def judged(of: Benchmark) -> tuple[float | None, float | None]:
    """Return the tokens per second that the judge reads, and that it writes in explanations; None if not measured.

    Reading has the speed of verdicts. Writing takes the time that explanations take beyond that.
    """
    by_mode = {step.setting["mode"]: (step.setting, of.measured(step.name)) for step in of.of("judging")}
    (_, verdict), (setting, explain) = by_mode["verdict"], by_mode["explain"]
    read = verdict and verdict["tokens"] / verdict["seconds"]
    if read is None or explain is None:
        return read, None
    written = explain["calls"] * setting["explain_tokens"]
    seconds = explain["seconds"] - (explain["tokens"] - written) / read
    return read, written / seconds if seconds > 0 else None


def against(of: Benchmark, path: str) -> float | None:
    """Return how many times as fast as another path ours trains, at the first settings."""
    ours, theirs = trained(of, dpo_step(of, "ours")), trained(of, dpo_step(of, path))
    return ours and theirs and ours / theirs


def plan_error(of: Benchmark, step: Step) -> float | None:
    """Return how far the plan is above what was measured (below, if negative), as a share of the measurement."""
    need, peak = of.plan(step), of.peak(step)
    return None if need is None or peak is None or is_mapped(of, step) else need.peak / peak - 1


def is_mapped(of: Benchmark, step: Step) -> bool:
    """Return whether a step uses weights from a file mapped into RAM: the plan counts them, the peak does not."""
    return of.device == "cpu" and (step.kind == "judging" or step.setting.get("engine") == "gguf")
