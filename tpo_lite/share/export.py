"""Writes an export: one adapter, a merged model, or GGUF files, each checked against the model that was trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from tpo_lite.adapters import CONFIG, Block, Blocks, concatenate, read_adapter, write_adapter
from tpo_lite.errors import InputError, TpoError
from tpo_lite.files import read_json, write_json
from tpo_lite.hub import local_folder
from tpo_lite.kinds import MergeBase, Precision
from tpo_lite.llamacpp.convert import check_space
from tpo_lite.machine.device import Device
from tpo_lite.share.chosen import Chosen, made_in
from tpo_lite.share.equality import (
    QUANTIZED,
    ROUNDED,
    SAME,
    Distance,
    answers,
    distance,
    read_by,
    read_by_llama_cpp,
    read_by_peft,
    read_by_run,
    require,
)
from tpo_lite.share.new_folder import new_folder
from tpo_lite.share.serving import Files, write_serving
from tpo_lite.share.tokenizer_files import write_tokenizer
from tpo_lite.version import __version__

GgufType = Literal["lora", "Q8_0", "Q4_K_M"]
Say = Callable[[str], None]
"""Shows a line of progress."""


def export_adapter(chosen: Chosen, out: Path, device: Device, say: Say) -> None:
    """Write one adapter for the base, with all of the run's updates in it, to the new folder `out`.

    Raises `InputError` if no adapter on the base can be the model, or the chat template cannot be extended, and
    `TpoError` if the adapter does not give the log-probs of the model that was trained.
    """
    blocks, scale, like = _all_updates(chosen)
    precision, sequences = chosen.recipe.precision(device), answers(chosen)
    with new_folder(out) as folder:
        _write_tokenizer(chosen, folder, say)
        write_adapter(folder, blocks, scale, chosen.base_name, like)
        if chosen.policy.adapter is None:  # the run quantizes merged weights anew: compared in 16 bits
            precision = _sixteen_bits(device)
        say(f"reading {len(sequences)} of the run's answers with the model that was trained, and with the export")
        trained = read_by_run(chosen.policy, device, precision, sequences)
        exported = read_by_peft(chosen.base.model, folder, device, precision, sequences)
        bound = SAME if chosen.policy.adapter is not None else ROUNDED
        checks = [require(distance(f"adapter in {precision}, as trained", trained, exported, sequences), bound)]
        say(str(checks[-1]))
        if precision == "nf4":
            unrounded = read_by_peft(chosen.base.model, folder, device, _sixteen_bits(device), sequences)
            checks.append(distance("the same on a base that is not quantized", trained, unrounded, sequences))
            say(str(checks[-1]))
        write_serving(chosen, folder, Files(model=chosen.base_name, adapter="."))
        _write_record(chosen, folder, checks)


def export_merged(chosen: Chosen, out: Path, device: Device, say: Say) -> None:
    """Write the model with its updates merged into 16-bit weights to the new folder `out`, a tensor at a time.

    The updates go into the weights that were trained on: of a run in 4 bits, into the dequantized ones. Raises as
    `export_adapter` does, and `TpoError` if the disk is too small.
    """
    with new_folder(out) as folder:
        _write_tokenizer(chosen, folder, say)
        checks = [_merge(chosen, folder, device, say)]
        say(str(checks[-1]))
        write_serving(chosen, folder, Files(model="."))
        _write_record(chosen, folder, checks)


def export_gguf(chosen: Chosen, type: GgufType, out: Path, device: Device, say: Say) -> None:
    """Write the adapter as a GGUF LoRA, or the merged model as a GGUF of a quantized `type`, to the new folder `out`.

    Raises as `export_merged` does.
    """
    with new_folder(out) as folder:
        _write_tokenizer(chosen, folder, say)
        if type == "lora":
            file = "adapter-lora.gguf"
            checks = _lora_gguf(chosen, folder / file, device, say)
            files = Files(model=chosen.base_name, adapter=f"./{file}")
        else:
            file = f"model-{type}.gguf"
            checks = _merged_gguf(chosen, type, folder / file, device, say)
            files = Files(model=f"./{file}", gguf=file)
        write_serving(chosen, folder, files)
        _write_record(chosen, folder, checks)


def _write_tokenizer(chosen: Chosen, folder: Path, say: Say) -> None:
    compared = write_tokenizer(chosen, folder)
    say(f"chat template: gives exactly the run's own tokens for {compared} prompts")


def _all_updates(chosen: Chosen) -> tuple[Blocks, float, Path]:
    """Return all updates of the base as one adapter, its scale, and an adapter folder with the other settings."""
    if chosen.policy.adapter is None and chosen.recipe.merge_base == "nf4":
        raise InputError(
            "merge_base: nf4 has rounded the base itself, so no adapter on the original base is this model. "
            "Use `tpo-lite export merged`."
        )
    adapters = made_in(chosen)
    blocks, scale = read_adapter(adapters[0])
    for adapter in adapters[1:]:
        more, its_scale = read_adapter(adapter)
        if its_scale != scale:
            raise TpoError(f"{adapter} has another scale than {adapters[0]}. Use `tpo-lite export merged`.")
        blocks = concatenate(blocks, more)
    return blocks, scale, adapters[-1]


def _sixteen_bits(device: Device) -> Precision:
    """Return what 16-bit weights are computed in: 32 bits on a CPU, where that is faster, and exact."""
    return "bfloat16" if device == "cuda" else "float32"


def _merge(chosen: Chosen, folder: Path, device: Device, say: Say) -> Distance:
    """Merge into `folder` and compare with the model that was trained."""
    from transformers import AutoModelForCausalLM

    from tpo_lite.training.requantize import merge_to_disk

    precision, sequences = chosen.recipe.precision(device), answers(chosen)
    into: MergeBase = "nf4" if precision == "nf4" else "w16"
    if chosen.policy.adapter is not None:
        blocks, scale = read_adapter(chosen.policy.adapter)
    else:  # merged already; what 4 bits make of it is dequantized
        blocks, scale = read_adapter(made_in(chosen)[-1])
        blocks = {name: Block(block.a[:1], torch.zeros_like(block.b[:, :1])) for name, block in blocks.items()}
    weights = local_folder(chosen.policy.model)
    check_space(folder, sum(shard.stat().st_size for shard in weights.glob("*.safetensors")))
    say(f"merging into the {'dequantized 4-bit' if into == 'nf4' else '16-bit'} weights of {chosen.policy.model}")
    made = {path.name: path.read_bytes() for path in folder.iterdir()}
    merge_to_disk(chosen.policy.model, blocks, scale, folder, into)
    for name, content in made.items():  # the base's own tokenizer files were copied over them
        (folder / name).write_bytes(content)
    _forget_path(folder)
    say(f"reading {len(sequences)} of the run's answers with the model that was trained, and with the export")
    trained = read_by_run(chosen.policy, device, precision, sequences)
    dtype = getattr(torch, _sixteen_bits(device))
    plain = lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map={"": device})  # noqa: E731
    exported = read_by(plain, sequences)
    return require(distance(f"merged, against {precision} as trained", trained, exported, sequences), ROUNDED)


def _forget_path(folder: Path) -> None:
    """Remove a local path that the base's config.json may hold."""
    config = read_json(folder / "config.json")
    if config.pop("_name_or_path", None) is not None:
        write_json(folder / "config.json", config)


def _lora_gguf(chosen: Chosen, file: Path, device: Device, say: Say) -> list[Distance]:
    """Write the GGUF LoRA, and compare it on an unquantized GGUF of the base with peft on the same base."""
    from tpo_lite.llamacpp.adapter import write_adapter_gguf
    from tpo_lite.llamacpp.convert import convert

    blocks, scale, _ = _all_updates(chosen)
    config = read_json(local_folder(chosen.base.model) / "config.json")
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    scratch = file.with_name("base-F16.gguf")
    say("converting the base to a GGUF, for the check alone")
    convert(local_folder(chosen.base.model), scratch)  # first: it refuses what llama.cpp cannot load
    write_adapter_gguf(blocks, scale, heads, kv_heads, file, config["model_type"])
    sequences = answers(chosen)
    say(f"reading {len(sequences)} of the run's answers with peft, and with llama.cpp")
    plain = file.with_name("plain")
    write_adapter(plain, blocks, scale, chosen.base_name, made_in(chosen)[-1])
    trained = read_by_peft(chosen.base.model, plain, device, _sixteen_bits(device), sequences)
    exported = read_by_llama_cpp(scratch, file, device, sequences)
    for path in (scratch, plain / CONFIG, *plain.glob("*.safetensors")):
        path.unlink()
    plain.rmdir()
    found = require(distance("LoRA on an F16 base, against peft", trained, exported, sequences), ROUNDED)
    say(str(found))
    return [found]


def _merged_gguf(
    chosen: Chosen, type: Literal["Q8_0", "Q4_K_M"], file: Path, device: Device, say: Say
) -> list[Distance]:
    """Merge, convert, check the unquantized file against the run, quantize, and measure what that changed."""
    from tpo_lite.llamacpp.convert import convert, quantize

    sequences, whole = answers(chosen), file.with_name("whole.gguf")
    merged = file.with_name("merged")
    merged.mkdir()
    for path in list(file.parent.iterdir()):
        if path.is_file():
            (merged / path.name).write_bytes(path.read_bytes())
    checks = [_merge(chosen, merged, device, say)]
    say(str(checks[-1]))
    convert(merged, whole, name=f"{chosen.base_name} {chosen.name}")
    for path in merged.iterdir():
        path.unlink()
    merged.rmdir()
    trained = read_by_run(chosen.policy, device, chosen.recipe.precision(device), sequences)
    exported = read_by_llama_cpp(whole, None, device, sequences)
    checks.append(require(distance("F16 GGUF, against the run", trained, exported, sequences), ROUNDED))
    say(str(checks[-1]))
    say(f"quantizing to {type}")
    quantize(whole, file, type)
    whole.unlink()
    quantized = read_by_llama_cpp(file, None, device, sequences)
    checks.append(require(distance(f"{type} GGUF, against the run", trained, quantized, sequences), QUANTIZED[type]))
    say(str(checks[-1]))
    return checks


def _write_record(chosen: Chosen, folder: Path, checks: list[Distance]) -> None:
    """Write export.json: what the export is, and what was measured."""
    record = {
        "tpo_lite": __version__,
        "model": chosen.name,
        "base": chosen.base_name,
        "thought": chosen.recipe.thought.style if chosen.arm == "thinking" else "direct",
        "checks": [check.to_dict() for check in checks],
    }
    write_json(folder / "export.json", record)
