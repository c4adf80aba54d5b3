"""Which base and adapter M_t is, and how a phase loads it to sample."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

from tpo_lite.chat import Chat, load_tokenizer, stop_ids
from tpo_lite.errors import TpoError
from tpo_lite.insertion import Insertion
from tpo_lite.kinds import Arm
from tpo_lite.machine.device import Device, check_torch
from tpo_lite.recipe import Recipe
from tpo_lite.records import Instruction, PromptSamples, Sample
from tpo_lite.run import RunFolder
from tpo_lite.sampling import engines
from tpo_lite.sampling.base import base_model
from tpo_lite.sampling.sampler import batches
from tpo_lite.settled import SettledRecipe
from tpo_lite.thoughts import WELL_FORMED, ThoughtStyle, end_of_thought, parse, thought_prompt

PROBE_FLOOR = 1e-5
"""A live adapter changes some log-probability by more than this; an ignored one by exactly 0."""


@dataclass(frozen=True)
class Policy:
    """M_t on disk."""

    model: str
    """The base: a hub id or a folder."""
    adapter: Path | None
    """The adapter on it; none for M_0 without a warm start, and after `merge: requantize`."""
    work: Path
    """Where an engine keeps the base in a format of its own."""
    gguf: Path | None = None
    """The GGUF file that the base was made from, if it was."""
    day: date | None = None
    """The date in the chat template, if it asks for one; None: today's."""


def policy(folder: RunFolder, recipe: Recipe, arm: Arm, iteration: int) -> Policy:
    """Return M_t of an arm."""
    model = folder.trained(arm, iteration)
    made_in = folder.iteration(arm, model - 1) if model > 0 else None
    if made_in and recipe.merge == "requantize":
        return Policy(str(made_in / "model"), None, made_in, day=folder.load_day())
    adapter = made_in / "adapter" if made_in else folder.warm_adapter(arm)
    return replace(bare_base(folder, recipe), adapter=adapter)


def bare_base(folder: RunFolder, recipe: Recipe) -> Policy:
    """Return the base without an adapter: M_0, or what a warm start makes M_0 of."""
    base = base_model(recipe.model, folder.root)
    return Policy(base.model, None, folder.root, base.gguf, folder.load_day())


class LoadedPolicy:
    """A model in memory with its tokenizer; samples and parses outputs."""

    def __init__(self, recipe: SettledRecipe, policy: Policy, device: Device):
        check_torch(device)
        self.recipe = recipe
        self.device = device
        self.engine = recipe.engine
        tokenizer = load_tokenizer(policy.model)
        self.chat = Chat(tokenizer, policy.day)
        self.stops = stop_ids(policy.model, tokenizer)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self.sampler = engines.load(policy, recipe, device, self.stops, pad)

    def probe(self, prompts: Sequence[list[int]]) -> float:
        """Check that the adapter is live and return how much it changes. Raises `TpoError` if it changes nothing."""
        change = self.sampler.probe(prompts)
        if change <= PROBE_FLOOR:
            raise TpoError(
                f"the adapter of the last iteration does not change the {self.engine} engine's output (largest "
                f"change in log-probability: {change:.1e}), so samples would come from M_0. Start again with "
                "--set engine=transformers --new. If the engine is already transformers, the last iteration trained "
                "nothing: raise train.learning_rate."
            )
        return change

    def prompt_ids(self, instruction: Instruction, style: ThoughtStyle) -> list[int]:
        """Return the ids of p + x in the chat template. The turns before x stay without a thought prompt."""
        return self.chat.prompt_ids(thought_prompt(style, instruction.text), instruction.context or ())

    def draw(
        self,
        instructions: Sequence[Instruction],
        style: ThoughtStyle,
        key: str,
        k: int,
        retries: int = 0,
        finished: frozenset[str] = frozenset(),
    ) -> Iterator[PromptSamples]:
        """Sample each instruction K times; yield a prompt once it and all before it in its batch are complete.

        Sample k of a prompt is seeded by (`key`, instruction, k). With `retries` (and K = 1), an instruction whose
        last sample is malformed is sampled again, up to `retries` times. The recipe's `thought.budget` bounds thoughts.

        Batches are planned over all `instructions`. A batch is skipped if every prompt in it is in `finished`, by
        instruction id; otherwise the whole batch is sampled and only its unfinished prompts are yielded. So a resumed
        phase repeats exactly what an uninterrupted one would have run.
        """
        prompts = [self.prompt_ids(instruction, style) for instruction in instructions]
        for indices in batches(prompts, max(1, self.sampler.rows // k)):
            batch = [_Prompt(instructions[index], prompts[index]) for index in indices]
            if all(prompt.instruction.id in finished for prompt in batch):
                continue
            for prompt in self._draw_batch(batch, style, key, k, retries):
                if prompt.instruction.id not in finished:
                    samples = sorted(prompt.samples, key=lambda sample: sample.k)
                    yield PromptSamples(prompt.instruction, prompt.ids, samples)

    def _draw_batch(
        self, batch: list[_Prompt], style: ThoughtStyle, key: str, k: int, retries: int
    ) -> Iterator[_Prompt]:
        """Sample a whole batch, in rounds; yield its prompts in their order, each once it is complete."""
        waiting = deque(batch)
        while rows := [(prompt, number) for prompt in waiting for number in prompt.missing(k, retries)]:
            forced: set[int] = set()
            stream = self.sampler.stream(
                [prompt.ids for prompt, _ in rows],
                [f"{key}/{prompt.instruction.id}/{number}" for prompt, number in rows],
                self._thought_budget(style, forced),
            )
            for row, ids in stream:
                prompt, number = rows[row]
                prompt.samples.append(self.read(number, ids, style, row in forced))
                while waiting and not waiting[0].missing(k, retries):
                    yield waiting.popleft()

    def _thought_budget(self, style: ThoughtStyle, forced: set[int]) -> Insertion | None:
        """Return what ends a thought that is longer than its budget; the rows where it does are added to `forced`."""
        budget = self.recipe.thought.budget
        if budget is None or style.response_marker is None:
            return None

        def marker(row: int, output: list[int]) -> list[int]:
            text = end_of_thought(style, self.chat.text(output))
            if not text:
                return []
            forced.add(row)
            return self.chat.text_ids(text)

        return Insertion(budget, marker)

    def read(self, k: int, ids: list[int], style: ThoughtStyle, forced: bool = False) -> Sample:
        """Return sample `k` of a prompt from its token ids, with its thought and response.

        `forced`: the thought's budget put the response marker in.
        """
        ended = bool(ids) and ids[-1] in self.stops
        text = self.chat.text(ids[:-1] if ended else ids)
        parsed = parse(style, text, truncated=not ended)
        return Sample(
            k=k,
            token_ids=ids,
            text=text,
            outcome="budget_forced" if forced and parsed.outcome in WELL_FORMED else parsed.outcome,
            thought=parsed.thought,
            response=parsed.response,
            thought_tokens=self.chat.count(parsed.thought),
            response_tokens=self.chat.count(parsed.response),
        )


@dataclass
class _Prompt:
    """A prompt and those of its samples that have been drawn."""

    instruction: Instruction
    ids: list[int]
    samples: list[Sample] = field(default_factory=list)

    def missing(self, k: int, retries: int) -> list[int]:
        """Return the numbers of the samples to draw next; empty once the prompt is complete."""
        drawn = len(self.samples)
        if drawn < k:
            return list(range(drawn, k))
        retry = drawn < k + retries and not self.samples[-1].well_formed
        return [drawn] if retry else []


def sampling_key(recipe: Recipe, arm: str, model: int, purpose: str) -> str:
    """Return what the random numbers of M_model's samples depend on, in addition to instruction and k.

    See `tpo_lite.seeds` before changing anything here.
    """
    return f"{recipe.seed}/{arm}/{model}/{purpose}"
