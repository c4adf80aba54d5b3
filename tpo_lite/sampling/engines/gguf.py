"""Engine gguf: the base as a GGUF in llama.cpp, with the adapter attached (`tpo_lite.llamacpp.decoder`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from transformers import AutoConfig

from tpo_lite.adapters import read_adapter
from tpo_lite.errors import TpoError
from tpo_lite.hub import local_folder
from tpo_lite.insertion import Insertion
from tpo_lite.kinds import SampledGguf
from tpo_lite.llamacpp.adapter import write_adapter_gguf
from tpo_lite.llamacpp.convert import convert, quantize
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Continuation, Leaf
from tpo_lite.machine.device import Device
from tpo_lite.sampling.policy import Policy
from tpo_lite.sampling.room import gguf_room
from tpo_lite.sampling.sampler import ROUNDS, Sampler
from tpo_lite.seeds import seed_of
from tpo_lite.settled import SettledRecipe

Q4_SHARE = 0.35
"""The most that a Q4_K_M file takes, as a share of the F16 file that it is made from."""


class GgufSampler(Sampler):
    """A `Sampler` in which the samples of a prompt share its prefill, and all thought prompts their common beginning.

    At most `sampling.batch` rows are continued at a time. The KV cache has room for all of them at their longest. Each
    row has a copy of its prompt's.
    """

    def __init__(self, policy: Policy, recipe: SettledRecipe, device: Device, stops: list[int]):
        settings = recipe.sampling
        self.settings, self.stops, self.device, self.work = settings, frozenset(stops), device, policy.work
        self.rows = ROUNDS * settings.batch
        config = AutoConfig.from_pretrained(policy.model)
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.architecture = config.model_type
        # If prompts are longer than `gguf_room` assumes, fewer rows are continued at a time.
        self.sequences, self.cells = gguf_room(recipe)
        self.base = policy.gguf or converted_base(policy.model, policy.work, recipe.gguf_type)
        self._load(policy.adapter)

    def _load(self, adapter: Path | None) -> None:
        lora = None
        if adapter is not None:
            lora = self.work / "sampling-adapter.gguf"
            write_adapter_gguf(*read_adapter(adapter), self.heads, self.kv_heads, lora, self.architecture)
        self.decoder = LlamaCpp(
            self.base,
            n_ctx=self.cells,
            n_seq_max=self.sequences,
            n_gpu_layers=-1 if self.device == "cuda" else 0,
            adapter=lora,
        )
        if lora is not None:
            lora.unlink()

    def stream(
        self, prompts: Sequence[list[int]], keys: Sequence[str], insertion: Insertion | None = None
    ) -> Iterator[tuple[int, list[int]]]:
        """See `tpo_lite.sampling.sampler.Sampler`."""
        settings = self.settings
        leaves = [
            Leaf(
                prompt,
                Continuation(
                    settings.max_new_tokens,
                    settings.temperature,
                    settings.top_p,
                    seed_of(key),
                    self.stops,
                    insertion=insertion,
                ),
            )
            for prompt, key in zip(prompts, keys, strict=True)
        ]
        for index, decoded in self.decoder.stream(leaves):
            yield index, decoded.tokens

    def probe(self, prompts: Sequence[list[int]]) -> float:
        """See `tpo_lite.sampling.sampler.Sampler`."""
        live = self.log_probabilities(prompts)
        self.decoder.attach_adapter(False)
        bare = self.log_probabilities(prompts)
        self.decoder.attach_adapter(True)
        return float(np.abs(live - bare).max())

    def log_probabilities(self, prompts: Sequence[list[int]]) -> np.ndarray:
        """Return log-probabilities (prompts, vocabulary) of each prompt's next token at temperature 1, in float32."""
        decoded = self.decoder.decode([Leaf(prompt) for prompt in prompts])
        logits = np.stack([cast(np.ndarray, each.logits) for each in decoded])
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    def use_adapter(self, folder: Path) -> None:
        """See `tpo_lite.sampling.sampler.Sampler`.

        llama.cpp has to know a model's adapters when it makes a context, so everything is loaded again.
        """
        self.close()
        self._load(folder)

    def close(self) -> None:
        """Free the model's memory."""
        del self.decoder


def converted_base(model: str, work: Path, kind: SampledGguf) -> Path:
    """Return the base as a GGUF, WORK/base-<kind>.gguf, which is made once and kept.

    Raises `InputError` for a model that cannot be converted (`tpo_lite.llamacpp.convert`), `TpoError` if the disk is
    too small.
    """
    path, whole = work / f"base-{kind}.gguf", work / "base-F16.gguf"
    if path.exists():
        return path
    source = local_folder(model)
    if not whole.exists():
        whole_bytes = sum(shard.stat().st_size for shard in source.glob("*.safetensors"))
        needed = whole_bytes * (1 if kind == "F16" else 1 + Q4_SHARE)
        free = shutil.disk_usage(work).free
        if needed > free:
            raise TpoError(
                f"engine: gguf needs {needed / 1e9:.1f} GB under {work} to convert the base once, and "
                f"{free / 1e9:.1f} GB are free. Free some space and run the same command again, or set "
                "engine: transformers."
            )
        convert(source, whole)
    if kind != "F16":
        quantize(whole, path, kind)
        whole.unlink()
    return path
