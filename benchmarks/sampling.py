"""The sampling engines side by side, written to results/sampling.md.

    python -m benchmarks.sampling                                       # the embedded policy, two CPU threads
    python -m benchmarks.sampling --model MODEL --device cuda --batch 48 --new-tokens 1024 --mean-length 400

    generate       NF4, `transformers` generate: what every row costs without sharing, leaving and joining
    transformers   NF4, the loop of `tpo_lite.sampling.huggingface.ContinuousSampler`
    unsloth        NF4, with --device cuda
    gguf           Q4_K_M, llama.cpp

Each engine samples the same instructions with the same random numbers and an adapter attached, in a process of
its own. Engines take turns, `--rounds` times; loading and a first prompt's short samples are not timed. MODEL is a
folder, such as one of `benchmarks.make_model`: there no sample would end by itself, so with --mean-length a share of
the vocabulary ends it. Reads `../shared/data` beside the repository, unless the model is the embedded one.
`benchmarks.gpu` measures with one engine at a time, through `--engine`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import tpo_lite.phases.process  # noqa: F401  keeps the libraries quiet, as in a phase
from tpo_lite import __version__
from tpo_lite.errors import InputError
from tpo_lite.machine.cards import GIB
from tpo_lite.machine.memory import PeakMemory
from tpo_lite.recipe import Instructions, Lora, Recipe, Sampling

RESULTS = Path(__file__).parent / "results" / "sampling.md"
K = 8
WARM_UP = 8
"""Tokens a sample of what is not timed."""
LATER_KERNELS = 256 << 20
"""Bytes that CUDA may take for kernels that are loaded when they are first called. Assumed, not measured."""


def recipe_of(engine: str, batch: int, new_tokens: int, prompt_tokens: int, rank: int) -> Recipe:
    """What one engine is measured with; in its last iteration the adapter sampled with has `rank`."""
    return Recipe(
        iterations=2,
        engine="transformers" if engine == "generate" else engine,
        instructions=Instructions(max_tokens=prompt_tokens),
        lora=Lora(rank=rank),
        sampling=Sampling(k=K, batch=batch, max_new_tokens=new_tokens),
    )


def cap_memory(device: str, gib: float | None) -> None:
    """Leaves torch as much of the GPU as a card of so many GiB would: beyond, its own error for no memory.

    CUDA's context, which this makes, and whatever else holds memory now take their share of it.
    """
    if device == "cuda" and gib is not None:
        import torch

        free, total = torch.cuda.mem_get_info()
        left = gib * GIB - (total - free) - LATER_KERNELS
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, left / total)))


def need_gpu_offload(device: str) -> None:
    """Raises `InputError` where llama.cpp would work on the CPU in the GPU's place, which it does without a word."""
    import llama_cpp

    if device == "cuda" and not llama_cpp.llama_supports_gpu_offload():
        raise InputError("llama.cpp was built without CUDA. Install it again with CMAKE_ARGS=-DGGML_CUDA=on.")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One engine, once, in this process: prompt and sampled tokens, seconds, peak memory in bytes, and the distance
    of gguf from NF4."""
    os.environ["TPO_LITE_DEVICE"] = options.device
    peak = PeakMemory()  # before there is a context, which counts
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
    loaded = LoadedPolicy(recipe, policy)
    if options.mean_length:
        vocabulary = len(loaded.chat.tokenizer)
        enders = np.random.default_rng(0).choice(vocabulary, vocabulary // options.mean_length, replace=False).tolist()
        loaded.stops = loaded.sampler.stops = frozenset([*loaded.stops, *enders])
    if options.engine in ("generate", "unsloth"):  # transformers takes a list alone
        ours = loaded.sampler
        loaded.sampler = GenerateSampler(ours.model, list(ours.stops), ours.pad, ours.settings)
    instructions = read_instructions(options)
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
        measured["shift"] = sampling_shift(loaded.sampler, policy, options.device, records)
    return measured


def read_instructions(options: argparse.Namespace) -> list[Any]:
    """Puzzles for the embedded policy, else AlpacaEval's instructions of at most `--prompt-tokens` tokens.

    The longest of these comes first, whatever the number of prompts: it decides how much memory prompts take.
    """
    from tpo_lite.chat import Chat, load_tokenizer
    from tpo_lite.hub import model_path
    from tpo_lite.records import Instruction

    if options.model == "embedded":
        from tpo_lite.embedded.world import instructions

        return instructions(options.prompts, seed=20_000)
    from tests.helpers.shared import SHARED

    rows = map(json.loads, (SHARED / "data/alpaca_eval2/instructions.jsonl").read_text().splitlines())
    chat = Chat(load_tokenizer(model_path(options.model)))
    lengths = {row["instruction"]: chat.count(row["instruction"]) for row in rows}
    texts = [text for text, length in lengths.items() if length <= options.prompt_tokens]
    longest = max(texts, key=lambda text: lengths[text])
    texts = [longest, *(text for text in texts if text != longest)]
    return [Instruction(str(number), text, "AlpacaEval") for number, text in enumerate(texts[: options.prompts])]


def write_adapter_to(work: Path, model: str, rank: int) -> None:
    """A fresh adapter of the model: it changes nothing and costs what a trained one does."""
    from tpo_lite.adapters import fresh_block, lora_config, write_adapter

    lora_config(rank, 1.0).save_pretrained(work / "like")
    write_adapter(work / "adapter", fresh_block(layer_shapes(model), rank, "benchmark"), 1.0, model, work / "like")


def layer_shapes(model: str) -> dict[str, tuple[int, int]]:
    """(in, out) of every linear layer that an adapter changes."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tpo_lite.hub import model_path

    with torch.device("meta"):
        shell = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path(model)))
    linears = {name: module for name, module in shell.named_modules() if isinstance(module, torch.nn.Linear)}
    return {name: (module.in_features, module.out_features) for name, module in linears.items() if name != "lm_head"}


def report(measured: dict[str, list[dict[str, Any]]], command: str, options: argparse.Namespace) -> str:
    """results/sampling.md."""
    rates = {engine: [run["tokens"] / run["seconds"] for run in runs] for engine, runs in measured.items()}
    plain = statistics.median(rates["generate"])
    rows = []
    for engine, runs in measured.items():
        rate = statistics.median(rates[engine])
        peaks = [f"{max(run['peak'].get(kind, 0) for run in runs) / 1e9:.2f}" for kind in ("host", "gpu")]
        every = ", ".join(f"{value:.0f}" for value in rates[engine])
        figures = [engine, runs[0]["tokens"], every, f"{rate:.0f}", f"{rate / plain:.2f}", *peaks]
        rows.append(f"| {' | '.join(map(str, figures))} |")
    return "\n".join(
        [
            "# Sampling engines",
            "",
            f"Date: {date.today()}. Machine: {machine(options.device)}; "
            f"Python {platform.python_version()}, tpo_lite {__version__}.",
            f"Command: `{command}`",
            "",
            f"Model: {Path(options.model).name}. {options.prompts} prompts, K = {K}, batch {options.batch}, at most "
            f"{options.new_tokens} new tokens, adapter of rank {options.rank}, T = 0.8, top-p 0.95.",
            "",
            "| engine | tokens | tokens/s, each round | median | x generate | peak RAM, GB | peak GPU, GB |",
            "|---|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            "Mean KL(sampler || trainer) of gguf, Q4_K_M against NF4, over the first tokens of 8 samples: "
            f"{measured['gguf'][0]['shift']:.4f} nats a token.",
            "",
        ]
    )


def machine(device: str) -> str:
    """What it was measured on, in words."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    return f"{os.cpu_count()} cores ({threads} threads), {platform.processor() or platform.machine()}, no GPU"


def main() -> None:
    """Measures all engines in turns, or one of them where the parent asks for it."""
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
    parser.add_argument("--results", type=Path, default=RESULTS)
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
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.results.write_text(report(measured, command, options))
    print(options.results.read_text())


if __name__ == "__main__":
    main()
