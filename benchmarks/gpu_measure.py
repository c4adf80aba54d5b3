"""One measurement of `benchmarks.gpu` in a process of its own; prints one line of JSON with its figures.

    python -m benchmarks.gpu_measure judging --model MODEL --device cuda --work FOLDER --mode verdict --prompts 8 ...

Sampling and DPO are measured by `benchmarks.sampling` and `benchmarks.training`. Figures are bytes and seconds unless
a docstring says otherwise.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu_steps import GGUF, RANK
from benchmarks.measuring import (
    bytes_of,
    cap_memory,
    layer_shapes,
    need_gpu_offload,
    read_instructions,
    visible_gpu,
    write_adapter_to,
)
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import write_json
from tpo_lite.machine.memory import PeakMemory
from tpo_lite.phases.process import keep_libraries_quiet

REPEATS = 10
NUMBERS = (
    "rank", "prompts", "prompt-tokens", "positions", "responses", "characters", "prefill", "context", "batch",
    "sequences", "explain-tokens",
)  # fmt: skip
"""Options that are whole numbers."""


def floor(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what no step can be faster than on this machine.

    These are bytes per second copied (read and written), operations per second of a matrix product in the type that
    layers compute in, the host's in float32, and bytes per second written to disk. Raises `InputError` if a CUDA
    device is wanted and torch has none.
    """
    import torch

    from tpo_lite.base_weights import compute_dtype

    on, large = options.device, options.device == "cuda"
    if large and not torch.cuda.is_available():
        raise InputError(f"torch {torch.__version__} finds no CUDA device. Install one built for CUDA, or use --cpu.")
    cap_memory(on, options.cap_gb)
    options.work.mkdir(parents=True, exist_ok=True)
    return {
        "copy": _copied(on, 1 << (29 if large else 26)),
        "matmul": _multiplied(on, 8192 if large else 1024, compute_dtype(on)),
        "host_matmul": _multiplied("cpu", 2048 if large else 1024, torch.float32),
        "disk": _written(options.work / "disk", 1 << 28),
        "versions": _versions(),
    }


def _copied(device: str, size: int) -> float:
    """Return bytes per second, each counted when it is read and when it is written."""
    import torch

    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _multiplied(device: str, size: int, dtype: Any) -> float:
    """Return operations per second; a multiplication and an addition are two."""
    import torch

    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


def _seconds(run: Callable[[], Any], device: str) -> float:
    """Return the seconds of one call: the mean over `REPEATS` calls after a first one."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    run()
    wait()
    start = time.perf_counter()
    for _ in range(REPEATS):
        run()
    wait()
    return (time.perf_counter() - start) / REPEATS


def _written(path: Path, size: int) -> float:
    """Return bytes per second until they are on the disk."""
    data = os.urandom(size)
    start = time.perf_counter()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return size / seconds


def _versions() -> str:
    """Return the libraries that figures depend on, with their versions."""
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("torch", "transformers", "trl", "bitsandbytes", "llama-cpp-python", "unsloth"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def weights(options: argparse.Namespace) -> dict[str, Any]:
    """Make the random checkpoint, straight on the device."""
    from benchmarks.make_model import make_model
    from benchmarks.shapes import SHAPES

    make_model(SHAPES[options.shape], options.model, device=options.device)
    return {"bytes": bytes_of(options.model.glob("*.safetensors"))}


def gguf(options: argparse.Namespace) -> dict[str, Any]:
    """Write the same weights for llama.cpp."""
    from benchmarks.make_model import make_gguf

    (path,) = make_gguf(options.model, [GGUF])
    return {"bytes": path.stat().st_size}


def adapter(options: argparse.Namespace) -> dict[str, Any]:
    """Make what the sampling engines look for in their folder: an adapter, and the base as GGUF.

    Raises `InputError` if the model has another shape than is asked for.
    """
    from benchmarks.shapes import SHAPES
    from tpo_lite.plan.shapes import model_shape, shape_of

    if model_shape(str(options.model)) != shape_of(SHAPES[options.shape].to_dict(), options.shape):
        raise InputError(
            f"{options.model} is not a {options.shape}. Give the folder of one, or a new --model to make it in."
        )
    write_adapter_to(options.work, str(options.model), RANK)
    base = options.work / f"base-{GGUF}.gguf"
    base.unlink(missing_ok=True)
    base.symlink_to(options.model / f"model-{GGUF}.gguf")
    return {"bytes": bytes_of((options.work / "adapter").iterdir())}


def judging(options: argparse.Namespace) -> dict[str, Any]:
    """Judge all pairs of answers to each of some instructions, in both orders; then decode one long prompt alone.

    These are the comparisons that the judge phase makes in a round robin. Answers are cut to `--characters`. Random
    weights never write a verdict, so an explanation takes all its tokens.
    """
    from benchmarks.texts import passages
    from tpo_lite.judges.gguf import GgufJudge
    from tpo_lite.judges.protocol import JudgeRequest
    from tpo_lite.llamacpp.leaves import Leaf
    from tpo_lite.plan.shapes import read_gguf

    need_gpu_offload(options.device)
    peak = PeakMemory(visible_gpu(options.device))
    path = options.model / f"model-{GGUF}.gguf"
    judge = GgufJudge(
        path,
        options.mode,
        explain_tokens=options.explain_tokens,
        overlong="truncate",
        n_ctx=options.context,
        n_batch=options.batch,
        n_seq_max=options.sequences,
        n_gpu_layers=-1 if options.device == "cuda" else 0,
        kv_type=options.kv_type,
    )
    cases = [
        (instruction, list(dict.fromkeys(answer[: options.characters] for answer in answers))[: options.responses])
        for instruction, answers in passages(options.prompts)
    ]
    requests = [JudgeRequest(text, a, b) for text, answers in cases for a, b in itertools.permutations(answers, 2)]
    text = "\n\n".join(answer for _, answers in passages(8) for answer in answers)
    single = judge.decoder.tokenize(text, special=False)[: options.prefill]
    judge.decoder.decode([Leaf(single)])  # the first decode also loads kernels
    before, start = judge.tokens_decoded, time.perf_counter()
    judge.compare(requests)
    seconds = time.perf_counter() - start
    decoded = judge.tokens_decoded - before
    start = time.perf_counter()
    judge.decoder.decode([Leaf(single)])
    prefill = time.perf_counter() - start
    taken = peak.bytes()
    shape = read_gguf(path)  # takes more memory than judging with a small model
    lengths = [len(judge.question(request).leaves[0].tokens) for request in requests]
    return {
        "seconds": seconds,
        "calls": len(requests),
        "tokens": decoded,
        "prompt": sum(lengths) / len(lengths),
        "prefill": len(single) / prefill,
        "file_bytes": shape.file_bytes,
        "gpu_bytes": shape.gpu_bytes,
        "peak": taken,
    }


def fold(options: argparse.Namespace) -> dict[str, Any]:
    """Run the phase `fold` itself, in a run made up for it: one checkpoint, with a random adapter."""
    from tpo_lite.chat import Chat, load_tokenizer
    from tpo_lite.files import write_atomically
    from tpo_lite.machine.device import Place
    from tpo_lite.phases import fold as phase
    from tpo_lite.recipe_keys import Lora
    from tpo_lite.records import PromptSamples, Sample
    from tpo_lite.run import RunFolder
    from tpo_lite.settled import SettledRecipe
    from tpo_lite.thoughts import GENERIC, thought_prompt

    peak = PeakMemory(visible_gpu(options.device))  # before there is a context, which counts
    cap_memory(options.device, options.cap_gb)
    run = RunFolder(options.work / "run")
    shutil.rmtree(run.root, ignore_errors=True)
    recipe = SettledRecipe(model=str(options.model), iterations=1, lora=Lora(rank=options.rank))
    run.start(recipe, recipe, Place(0 if options.device == "cuda" else None), new=False)
    made = run.iteration("thinking", 0)
    write_random_adapter(made / "train/checkpoint-1", options)
    write_json(made / "validation.json", {"chosen": "checkpoint-1"})
    chat = Chat(load_tokenizer(str(options.model)))
    sample = Sample(0, list(range(1000, 1000 + options.positions)), "", "ok", "", "", 0, 0)
    records = [
        PromptSamples(instruction, chat.prompt_ids(thought_prompt(GENERIC, instruction.text)), [sample])
        for instruction in read_instructions(str(options.model), options.prompts, options.prompt_tokens)
    ]
    write_atomically(run.validation_of("thinking", 1), "".join(record.to_json() + "\n" for record in records))
    start = time.perf_counter()
    phase.run(run, run.load_settled(), "thinking", 0, options.device)
    return {
        "seconds": time.perf_counter() - start,
        "sequences": 2 * len(records),
        "tokens": 2 * sum(len(record.prompt_ids) + options.positions for record in records),
        "disk": bytes_of((made / "adapter").iterdir()),
        "peak": peak.bytes(),
    }


def requantize(options: argparse.Namespace) -> dict[str, Any]:
    """Merge a random adapter into the 16-bit weights on disk and verify it: what `merge: requantize` adds."""
    from tpo_lite.adapters import read_adapter
    from tpo_lite.training.requantize import merge_to_disk

    source, out = options.work / "checkpoint", options.work / "merged"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)  # a merge would go on where an earlier one was stopped
    source.mkdir()
    for file in options.model.iterdir():
        if file.suffix != ".gguf":  # not part of a checkpoint, and a merge would copy it
            (source / file.name).symlink_to(file)
    write_random_adapter(options.work / "update", options)
    blocks, scale = read_adapter(options.work / "update")
    peak, start = PeakMemory(visible_gpu(options.device)), time.perf_counter()
    merge_to_disk(str(source), blocks, scale, out)
    measured = {"seconds": time.perf_counter() - start, "disk": bytes_of(out.iterdir()), "peak": peak.bytes()}
    shards = [shard.stat().st_size for shard in options.model.glob("*.safetensors")]
    shutil.rmtree(out)
    return measured | {"bytes": sum(shards), "shard": max(shards)}


def write_random_adapter(folder: Path, options: argparse.Namespace) -> None:
    """Write an adapter of `--rank` that changes the model a little, as a trained one does."""
    import torch

    from tpo_lite.adapters import Block, fresh_block, lora_config, write_adapter

    generator = torch.Generator().manual_seed(0)
    fresh = fresh_block(layer_shapes(str(options.model)), options.rank, "benchmark")
    blocks = {
        name: Block(block.a, torch.randn(block.b.shape, generator=generator) * 1e-3) for name, block in fresh.items()
    }
    lora_config(options.rank, 1.0).save_pretrained(folder)
    write_adapter(folder, blocks, 1.0, str(options.model), folder)


KINDS = {run.__name__: run for run in (floor, weights, gguf, adapter, judging, fold, requantize)}


def main() -> None:
    """Measure, and print the figures as the last line."""
    keep_libraries_quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--cap-gb", type=float)
    for name in ("shape", "mode", "kv-type"):
        parser.add_argument(f"--{name}")
    for name in NUMBERS:
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    try:
        print(json.dumps(KINDS[options.kind](options)))
    except TpoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
