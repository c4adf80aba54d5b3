"""Which base and adapter M_t is, and how a phase loads it to sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.chat import Chat, load_tokenizer, stop_ids
from tpo_lite.errors import TpoError
from tpo_lite.hub import model_path
from tpo_lite.machine.device import chosen_device
from tpo_lite.recipe import Recipe
from tpo_lite.records import Instruction, PromptSamples, Sample
from tpo_lite.run import RunFolder
from tpo_lite.sampling import engines
from tpo_lite.sampling.sampler import batches
from tpo_lite.thoughts import ThoughtStyle, parse, thought_prompt

PROBE_FLOOR = 1e-5
"""A live adapter changes some log-probability by more than this; an ignored one by exactly 0."""


@dataclass(frozen=True)
class Policy:
    """M_t on disk."""

    model: str
    """The base: a hub id or a folder."""
    adapter: Path | None
    """The adapter on it; none for M_0 and after `merge: requantize`."""
    work: Path
    """Where an engine keeps the base in a format of its own."""


def policy(run: RunFolder, recipe: Recipe, arm: str, iteration: int) -> Policy:
    """M_t of an arm."""
    model = run.trained(arm, iteration)
    if model == 0:
        return Policy(model_path(recipe.model), None, run.root)
    folder = run.iteration(arm, model - 1)
    if recipe.merge == "requantize":
        return Policy(str(folder / "model"), None, folder)
    return Policy(model_path(recipe.model), folder / "adapter", run.root)


class LoadedPolicy:
    """A model in memory with its tokenizer; samples and parses outputs."""

    def __init__(self, recipe: Recipe, on: Policy):
        self.recipe = recipe
        self.device = chosen_device()
        self.engine = engines.engine_name(recipe.engine, self.device)
        tokenizer = load_tokenizer(on.model)
        self.chat = Chat(tokenizer)
        self.stops = stop_ids(on.model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.sampler = engines.load(self.engine, on, recipe, self.device, self.stops, pad)

    def probe(self, prompts: Sequence[list[int]]) -> float:
        """Proves that the adapter is live. Raises `TpoError` if it changes nothing."""
        change = self.sampler.probe(prompts)
        if change <= PROBE_FLOOR:
            raise TpoError(
                f"the adapter of the last iteration does not change the {self.engine} engine's output (largest change in "
                f"log-probability {change:.1e}), so it would sample M_0 again. Try --set engine=transformers with --new; "
                "if that is the engine, the last iteration trained nothing: raise train.learning_rate."
            )
        return change

    def draw(
        self,
        instructions: Sequence[Instruction],
        style: ThoughtStyle,
        key: str,
        k: int,
        retries: int = 0,
        finished: frozenset[str] = frozenset(),
    ) -> Iterator[PromptSamples]:
        """Samples each instruction K times; gives a prompt as soon as it and those before it in its batch are sampled.

        Sample k of a prompt is seeded by (`key`, instruction, k). With `retries` (and K = 1), an instruction whose
        last sample is malformed gets one more, up to so many. Batches are planned over all
        `instructions`, and those with a prompt that is not in `finished` are sampled whole: a resumed
        phase repeats just what an uninterrupted one would have run, and gives the others in the same order.
        """
        prompts = [self.chat.prompt_ids(thought_prompt(style, instruction.text)) for instruction in instructions]
        for batch in batches(prompts, max(1, self.sampler.rows // k)):
            if all(instructions[index].id in finished for index in batch):
                continue
            samples: dict[int, list[Sample]] = {index: [] for index in batch}
            rows = [(index, number) for index in batch for number in range(k)]
            waiting = deque(batch)
            while rows:
                stream = self.sampler.stream(
                    [prompts[index] for index, _ in rows],
                    [f"{key}/{instructions[index].id}/{number}" for index, number in rows],
                )
                for row, ids in stream:
                    index, number = rows[row]
                    samples[index].append(self.read(number, ids, style))
                    while waiting and _ended(samples[waiting[0]], k, retries):
                        index = waiting.popleft()
                        if instructions[index].id not in finished:
                            mine = sorted(samples[index], key=lambda sample: sample.k)
                            yield PromptSamples(instructions[index], prompts[index], mine)
                rows = [(i, len(samples[i])) for i in waiting if not _ended(samples[i], k, retries)]

    def read(self, k: int, ids: list[int], style: ThoughtStyle) -> Sample:
        """A sample from its token ids."""
        ended = bool(ids) and ids[-1] in self.stops
        text = self.chat.text(ids[:-1] if ended else ids)
        parsed = parse(style, text, truncated=not ended)
        return Sample(
            k=k,
            token_ids=ids,
            text=text,
            outcome=parsed.outcome,
            thought=parsed.thought,
            response=parsed.response,
            thought_tokens=self.chat.count(parsed.thought),
            response_tokens=self.chat.count(parsed.response),
        )


def _ended(samples: Sequence[Sample], k: int, retries: int) -> bool:
    """Whether a prompt needs no more samples than these."""
    return len(samples) == k + retries or (len(samples) >= k and samples[-1].outcome == "ok")


def sampling_key(recipe: Recipe, arm: str, model: int, purpose: str) -> str:
    """What the random numbers of M_model's samples depend on, besides instruction and k."""
    return f"{recipe.seed}/{arm}/{model}/{purpose}"
