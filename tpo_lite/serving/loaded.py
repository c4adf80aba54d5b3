"""A model loaded into llama.cpp, ready to reply to conversations."""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoConfig

from tpo_lite.chat import Chat, load_tokenizer, stop_ids
from tpo_lite.errors import InputError
from tpo_lite.gguf_header import GgufHeader
from tpo_lite.hub import is_gguf, local_folder
from tpo_lite.kinds import SampledGguf
from tpo_lite.llamacpp.context import LlamaContext
from tpo_lite.records import Turn
from tpo_lite.serving.generator import Generator, Request
from tpo_lite.serving.source import STYLES, Source
from tpo_lite.thoughts import DIRECT, PLACEHOLDER, ThoughtStyle, thought_prompt


class TooLong(InputError):
    """A prompt leaves no room for a reply."""


@dataclass(frozen=True)
class Wishes:
    """How a reply is to be, as far as whoever asks says so."""

    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    budget: int | None = None
    """Tokens of thought; 0: none."""
    stops: tuple[str, ...] = ()


class LoadedModel:
    """A `Source` in memory: `rows` replies at a time within `context` tokens, and `queue` more requests may wait.

    No reply is longer than `longest` tokens, thought included.

    Raises `InputError` for a model that cannot be converted or loaded and for a chat template that cannot be used, and
    `OutOfMemory`.
    """

    def __init__(
        self,
        source: Source,
        *,
        gpu: bool = False,
        context: int = 8192,
        rows: int = 1,
        queue: int = 0,
        longest: int = 4096,
    ):
        self.source, self.longest = source, longest
        policy = source.policy
        base = policy.gguf or _run_base(source) or converted(policy.model, source.weights)
        with TemporaryDirectory() as work:
            folder = _tokenizer_folder(base, Path(work)) if is_gguf(policy.model) else policy.model
            tokenizer = load_tokenizer(folder)
            chat, stops = Chat(tokenizer, policy.day), frozenset(stop_ids(folder, tokenizer))
            adapter = None if policy.adapter is None else _adapter_gguf(policy.model, policy.adapter, Path(work))
            decoder = LlamaContext(
                base,
                n_ctx=context,
                n_seq_max=rows,
                n_gpu_layers=-1 if gpu else 0,
                adapter=adapter,
                kv_unified=True,
            )
        baked = baked_style(str(tokenizer.chat_template))
        self.style = baked or source.style
        """How thoughts and responses are told apart."""
        self._asked = DIRECT if baked else source.style
        self.generator = Generator(decoder, chat, stops | decoder.end_tokens(), queue)
        self.room = decoder.max_leaf
        """The most tokens of a prompt and its reply."""

    def request(self, text: str, context: Sequence[Turn], wishes: Wishes) -> Request:
        """Return the request for a reply to a user's turn and the turns before it, which have no thoughts.

        Raises `InputError` for turns that have no place in the chat template, for a thought's budget that leaves
        nothing for a response, for a reply that is too long, and for a prompt that fills the context.
        """
        asked = thought_prompt(self._asked, text)
        return self._request(
            self.generator.prompt_ids(lambda chat: chat.prompt_ids(asked, context)), wishes, self.style
        )

    def raw_request(self, text: str, wishes: Wishes) -> Request:
        """Return the request to go on with a text as it is, outside the chat template."""
        bos = self.generator.context.bos
        ids = self.generator.prompt_ids(lambda chat: chat.text_ids(text))
        return self._request(([] if bos is None else [bos]) + ids, wishes, None)

    def _request(self, prompt: list[int], wishes: Wishes, style: ThoughtStyle | None) -> Request:
        sampling = self.source.sampling
        left = self.room - len(prompt)
        if left < 1:
            raise TooLong(f"the prompt has {len(prompt)} tokens, and the context {self.room}. Shorten the prompt.")
        longest = wishes.max_tokens or min(sampling.max_new_tokens, left, self.longest)
        if longest > self.longest:
            raise InputError(f"max_tokens: {longest} is more than {self.longest}. Ask for fewer.")
        return Request(
            prompt=prompt,
            max_tokens=longest,
            temperature=sampling.temperature if wishes.temperature is None else wishes.temperature,
            top_p=sampling.top_p if wishes.top_p is None else wishes.top_p,
            seed=secrets.randbits(64) if wishes.seed is None else wishes.seed,
            style=style,
            budget=self._budget(wishes.budget, longest),
            stops=wishes.stops,
        )

    def _budget(self, wished: int | None, longest: int) -> int:
        """Return the tokens after which the response begins: the recipe's budget or half of the output if not told."""
        if wished is not None:
            if wished >= longest:
                raise InputError(
                    f"a thought budget of {wished} tokens leaves nothing of {longest} for the response. Lower it."
                )
            return wished
        budget = self.source.budget
        return budget if budget is not None and budget < longest else longest // 2

    def close(self) -> None:
        """End the generator's thread and free the memory."""
        self.generator.close()
        del self.generator


def baked_style(template: str) -> ThoughtStyle | None:
    """Return the thought prompt that a chat template puts around a user's turn by itself, if it does."""
    for style in STYLES.values():
        marker, begin = style.response_marker, style.prompt.partition(PLACEHOLDER)[0][:60]
        if marker is not None and begin in template and marker in template:
            return style
    return None


def _run_base(source: Source) -> Path | None:
    """Return the base as a GGUF that the run has made to sample from, if it has."""
    file = source.policy.work / f"base-{source.weights}.gguf"
    return file if source.of_run is not None and file.is_file() else None


def converted(model: str, weights: SampledGguf) -> Path:
    """Return a model's folder or hub id as a GGUF, which is made once and kept in the user's cache.

    Raises `InputError` for a model that cannot be converted (`tpo_lite.llamacpp.convert`), `TpoError` if the disk is
    too small.
    """
    from tpo_lite.sampling.engines.gguf import converted_base

    folder = local_folder(model).resolve()
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".safetensors"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(repr((str(folder), stats)).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tpo_lite"
    file = cache / f"{folder.name}-{key}-{weights}.gguf"
    if not file.exists():
        print(f"{model}: converting it for llama.cpp once, to {file}", flush=True)
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as work:
            converted_base(str(folder), Path(work), weights).replace(file)
    return file


def _tokenizer_folder(file: Path, work: Path) -> str:
    """Write the tokenizer of a GGUF to `work`, and return that. Raises `InputError` if it is not supported."""
    from tpo_lite.llamacpp.gguf_tokenizer import write_tokenizer

    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            values = GgufHeader(data, arrays=True).values
        except Exception as error:
            raise InputError(f"{file} cannot be read as a GGUF ({error}). Copy or download it again.") from error
    write_tokenizer(values, file, work)
    return str(work)


def _adapter_gguf(model: str, adapter: Path, work: Path) -> Path:
    """Write an adapter for llama.cpp to `work`, and return the file."""
    from tpo_lite.adapters import read_adapter
    from tpo_lite.llamacpp.adapter import write_adapter_gguf

    config = AutoConfig.from_pretrained(model)
    file = work / "adapter.gguf"
    blocks, scale = read_adapter(adapter)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    write_adapter_gguf(blocks, scale, heads, kv_heads, file, config.model_type)
    return file
