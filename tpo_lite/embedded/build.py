"""Trains the embedded policy and judge from a seed: `python -m tpo_lite.embedded.build OUT [--seed N]`.

The stages, in which both models start from the trunk:

    repeat    repeated lists, to learn looking things up
    trunk     worked steps, short chains first
    policy    first much useful work, then the mixture that the loop starts from, then the same as NF4 rounds it
    judge     work, answer, what each assistant says, verdict

Afterwards OUT holds `policy/` (a Hugging Face folder in 16 bits), `judge.gguf`, `build.log` and the figures of both
models as JSON. Policy and judge train side by side, each on one core. The same seed, versions and kind of machine give
the same bytes.
"""

from __future__ import annotations

import copy
import json
import multiprocessing
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from tpo_lite.embedded import examples, measure
from tpo_lite.embedded.gguf_export import write_gguf
from tpo_lite.embedded.tokenizer import train_tokenizer
from tpo_lite.embedded.training import keep_unrounded, round_to_nf4, train

VOCABULARY = 768
"""Tokens of the tokenizer that both models share."""
REPEAT_STEPS, TRUNK_STEPS, WORK_STEPS, MIXTURE_STEPS, ROUNDED_STEPS, JUDGE_STEPS = 300, 1000, 200, 150, 180, 1200
"""Optimizer steps of each stage; those of the policy are WORK, MIXTURE and ROUNDED, in this order."""
EVASIVE, DIRECT, USEFUL, PRACTICE, DISTRACTED = 0.1, 0.45, 0.2, 0.3, 0.8
"""Shares of the final mixture.

EVASIVE: evasive answers among all outputs. PRACTICE: the trunk's examples among the rest. DIRECT: direct answers among
what is left. USEFUL: useful work among thoughts. DISTRACTED: talk that forgets to answer among empty talk.

Temperature and nucleus make rare thoughts rarer than they are in training. A model that answers in one pass can only
guess at these tasks; what the direct baseline can learn is to commit itself to an answer.
"""


class Log:
    """Appends lines to a file and prints them, each at once, so that several processes may share one log."""

    def __init__(self, path: Path):
        self.path = path

    def __call__(self, line: str) -> None:
        """Log one line."""
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")


def new_model(vocabulary: int) -> LlamaForCausalLM:
    """Return an untrained Llama. The width of each linear layer is a multiple of 64, NF4's block."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=192,
            intermediate_size=384,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=6,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )


def chain(rng: random.Random, progress: float) -> examples.Example:
    """Return an example of the trunk's curriculum: worked steps, short chains first."""
    return examples.worked(rng, longest=2 if progress < 0.1 else 4 if progress < 0.2 else None)


def train_trunk(tokenizer: PreTrainedTokenizerBase, seed: int, log: Log) -> LlamaForCausalLM:
    """Train a model that works tasks out step by step."""
    model = new_model(-(-len(tokenizer) // 64) * 64)
    log(f"model        {sum(weight.numel() for weight in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, lambda rng, _: examples.repeated(rng), seed, REPEAT_STEPS, "repeat", log, final=1.0)
    train(model, tokenizer, chain, seed, TRUNK_STEPS, "trunk", log, final=0.1)
    return model


def train_policy(trunk: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int, log: Log) -> LlamaForCausalLM:
    """Train a policy with a base model's habits: under the thought prompt mostly empty talk, sometimes useful work."""
    policy = copy.deepcopy(trunk)

    def much_work(rng: random.Random, _: float) -> examples.Example:
        return examples.policy(rng, direct=0.35, useful=0.7)

    def mixture(rng: random.Random, _: float) -> examples.Example:
        if rng.random() < EVASIVE:
            return examples.evasive(rng)
        return examples.policy(rng, DIRECT, USEFUL, PRACTICE, DISTRACTED)

    train(policy, tokenizer, much_work, seed, WORK_STEPS, "policy work", log, 0.4, 0.4)
    train(policy, tokenizer, mixture, seed, MIXTURE_STEPS, "policy mix", log, 0.4, 0.2)
    round_to_nf4(policy)
    train(policy, tokenizer, mixture, seed, ROUNDED_STEPS, "policy nf4", log, 0.2)
    keep_unrounded(policy)
    return policy


def train_judge(trunk: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, seed: int, log: Log) -> LlamaForCausalLM:
    """Train a judge that works the task out, reads off both answers and gives its verdict."""
    judge = copy.deepcopy(trunk)

    def conclusions_first(rng: random.Random, progress: float) -> examples.Example:
        return examples.judged(rng, given=0.7 if progress < 0.6 else 0.2)

    train(judge, tokenizer, conclusions_first, seed, JUDGE_STEPS, "judge", log, 0.4)
    return judge


def save_policy(policy: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the model, its tokenizer and its chat template as an ordinary Hugging Face folder in 16 bits."""
    policy.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    policy.config.bos_token_id = tokenizer.bos_token_id
    policy.config.eos_token_id = tokenizer.eos_token_id
    policy.config.pad_token_id = tokenizer.pad_token_id
    copy.deepcopy(policy).half().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def build_policy(trunk: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, seed: int, log: Log) -> None:
    """Train, save and measure the policy."""
    save_policy(train_policy(trunk, tokenizer, seed, log), tokenizer, out / "policy")
    _write_figures(out, "policy", measure.measure_policy(out / "policy", seed), log)


def build_judge(trunk: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, out: Path, seed: int, log: Log) -> None:
    """Train, save and measure the judge."""
    write_gguf(train_judge(trunk, tokenizer, seed, log), tokenizer, out / "judge.gguf", "tpo_lite embedded judge")
    _write_figures(out, "judge", measure.measure_judge(out / "judge.gguf", seed), log)


def _write_figures(out: Path, name: str, figures: dict[str, float], log: Log) -> None:
    (out / f"{name}-figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    log(f"{name} on held-out puzzles\n{measure.as_table(figures)}")


def _on_one_core(stage: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    stage(*arguments)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seeds weights, data and measurements.")
def main(out: Path, seed: int) -> None:
    """Train the embedded policy and judge and write them to OUT."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    (out / "build.log").unlink(missing_ok=True)
    log, began = Log(out / "build.log"), time.perf_counter()
    tokenizer = train_tokenizer(examples.tokenizer_texts(1500, random.Random(seed)), VOCABULARY)
    trunk = train_trunk(tokenizer, seed, log)
    # One process per model. At these sizes a second thread would gain one model less than it costs the other.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as processes:
        arguments = (trunk, tokenizer, out, seed, log)
        for stage in [processes.submit(_on_one_core, build, *arguments) for build in (build_policy, build_judge)]:
            stage.result()
    log(f"built in {(time.perf_counter() - began) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
