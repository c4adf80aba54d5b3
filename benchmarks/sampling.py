"""The sampling engines side by side, written to results/sampling.md.

    python -m benchmarks.sampling                                       # the embedded policy, two CPU threads
    python -m benchmarks.sampling --model MODEL --device cuda --batch 48 --new-tokens 1024 --mean-length 400

    generate       NF4, `transformers` generate: what every row costs without sharing, leaving and joining
    transformers   NF4, the loop of `tpo_lite.sampling.huggingface.ContinuousSampler`
    unsloth        NF4, with --device cuda
    gguf           Q4_K_M, llama.cpp

Each engine samples the same instructions with the same random numbers and an adapter attached, in a process of its
own. Engines take turns, `--rounds` times. Loading and the first prompt's short samples are not timed.
MODEL is a folder, such as one that `benchmarks.make_model` writes. No sample of such a model would end by itself, so
with --mean-length a share of the vocabulary ends it. `benchmarks.gpu` measures one engine at a time, with `--engine`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measuring import cap_memory, need_gpu_offload, read_instructions, visible_gpu, write_adapter_to
from benchmarks.tables import RESULTS, heading, peaks, table, write
from tpo_lite.machine.memory import PeakMemory
from tpo_lite.phases.process import keep_libraries_quiet
from tpo_lite.recipe_keys import Instructions, Lora
from tpo_lite.settled import SettledRecipe, SettledSampling

K = 8
WARM_UP = 8
"""Tokens per sample of the warm-up, which is not timed."""


def recipe_of(engine: str, batch: int, new_tokens: int, prompt_tokens: int, rank: int) -> SettledRecipe:
    """Return what one engine is measured with; the adapter of its last iteration has `rank`."""
    return SettledRecipe(
        iterations=2,
        engine="transformers" if engine == "generate" else engine,
        instructions=Instructions(max_tokens=prompt_tokens),
        lora=Lora(rank=rank),
        sampling=SettledSampling(k=K, batch=batch, max_new_tokens=new_tokens),
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure one engine, once, in this process.

    Returns prompt and sampled tokens, seconds, peak memory in bytes, and for gguf its distance from NF4.
    """
    keep_libraries_quiet()
    peak = PeakMemory(visible_gpu(options.device))  # before there is a context, which counts
    if options.engine == "gguf":
        need_gpu_offload(options.device)
    else:  # llama.cpp does without torch's context, which would count
        cap_memory(options.device, options.cap_gb)
    import numpy as np

    from tpo_lite.hub import model_path
    from tpo_lite.sampling.huggingface import GenerateSampler
    from tpo_lite.sampling.policy import LoadedPolicy, Policy
    from tpo_lite.sampling.shift import sampling_shift
    from tpo_lite.thoughts import GENERIC

    recipe = recipe_of(options.engine, options.batch, options.new_tokens, options.prompt_tokens, options.rank)
    policy = Policy(model_path(options.model), options.work / "adapter", options.work)
    loaded = LoadedPolicy(recipe, policy, options.device)
    if options.mean_length:
        vocabulary = len(loaded.chat.tokenizer)
        enders = np.random.default_rng(0).choice(vocabulary, vocabulary // options.mean_length, replace=False).tolist()
        loaded.stops = loaded.sampler.stops = frozenset([*loaded.stops, *enders])
    if options.engine in ("generate", "unsloth"):  # transformers takes a list alone
        ours = loaded.sampler
        loaded.sampler = GenerateSampler(ours.model, list(ours.stops), ours.pad, ours.settings)
    instructions = read_instructions(options.model, options.prompts, options.prompt_tokens)
    settings = loaded.sampler.settings
    loaded.sampler.settings = settings.model_copy(update={"max_new_tokens": min(WARM_UP, settings.max_new_tokens)})
    list(loaded.draw(instructions[:1], GENERIC, "warm-up", K))
    loaded.sampler.settings = settings
    start = time.perf_counter()
    records = list(loaded.draw(instructions, GENERIC, "benchmark", K))
    measured: dict[str, Any] = {"seconds": time.perf_counter() - start, "peak": peak.bytes()}
    measured["tokens"] = sum(len(sample.token_ids) for record in records for sample in record.samples)
    measured["prompt_tokens"] = sum(len(record.prompt_ids) for record in records)
    if options.engine == "gguf":
        measured["shift"] = sampling_shift(
            loaded.sampler, policy, options.device, recipe.precision(options.device), records
        )
    return measured


def report(measured: dict[str, list[dict[str, Any]]], command: str, options: argparse.Namespace) -> str:
    """Return the text of results/sampling.md."""
    rates = {engine: [run["tokens"] / run["seconds"] for run in runs] for engine, runs in measured.items()}
    plain = statistics.median(rates["generate"])
    rows = []
    for engine, runs in measured.items():
        rate = statistics.median(rates[engine])
        every = ", ".join(f"{value:.0f}" for value in rates[engine])
        rows.append([engine, runs[0]["tokens"], every, f"{rate:.0f}", f"{rate / plain:.2f}", *peaks(runs)])
    return "\n".join(
        [
            *heading("Sampling engines", options.device, command),
            f"Model: {Path(options.model).name}. {options.prompts} prompts, K = {K}, batch {options.batch}, at most "
            f"{options.new_tokens} new tokens, adapter of rank {options.rank}, T = 0.8, top-p 0.95.",
            "",
            *table("engine: | tokens | tokens/s, each round | median | x generate | peak RAM, GB | peak GPU, GB", rows),
            "",
            "Mean KL(sampler || trainer) of gguf, Q4_K_M against NF4, over the first tokens of 8 samples: "
            f"{measured['gguf'][0]['shift']:.4f} nats a token.",
            "",
        ]
    )


def main() -> None:
    """Measure all engines in turns, or the one that the parent process asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=512, help="instructions.max_tokens")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--mean-length", type=int, default=0, help="tokens; 0: samples end where the model ends them")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--cap-gb", type=float, help="GiB of the GPU that torch may take in a process")
    parser.add_argument("--results", type=Path, default=RESULTS / "sampling.md")
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(measure(options)))
        return
    engines = ["generate", "transformers", *(["unsloth"] if options.device == "cuda" else []), "gguf"]
    measured: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    with tempfile.TemporaryDirectory() as work:
        write_adapter_to(Path(work), options.model, options.rank)
        for number in range(options.rounds):
            for engine in engines:
                child = [sys.executable, "-m", "benchmarks.sampling", *sys.argv[1:], "--engine", engine, "--work", work]
                done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
                measured[engine].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"round {number + 1}, {engine}: {measured[engine][-1]}", flush=True)
    command = " ".join(["python -m benchmarks.sampling", *sys.argv[1:]])
    write(options.results, report(measured, command, options))


if __name__ == "__main__":
    main()
