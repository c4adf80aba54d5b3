"""What goes up of a folder: files with known names and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from tpo_lite.errors import InputError
from tpo_lite.thoughts import PLACEHOLDER, ThoughtStyle

Kind = Literal["adapter", "merged", "gguf"]

SHARED = ("LICENSE*", "NOTICE*", "USE_POLICY*", "chat_template.jinja", "tokenizer.json", "tokenizer.model")
TOKENIZER = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
FILES: dict[Kind, tuple[str, ...]] = {
    "adapter": (
        *("adapter_config.json", "adapter_model.safetensors", "generation_config.json"),
        *(*SHARED, *TOKENIZER),
    ),
    "merged": (
        *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
        *("model.safetensors.index.json", *SHARED, *TOKENIZER),
    ),
    "gguf": ("*.gguf", "template", "params", "system", "chat_template.jinja", "LICENSE*", "NOTICE*", "USE_POLICY*"),
}
"""What may go up, by name. A folder's other files stay here."""

NAMES_OF_THE_BASE = ("base_model_name_or_path", "_name_or_path", "name_or_path")
"""Keys of configurations in which libraries keep where a model was loaded from, which may be a local path."""

OLLAMA_TAG = "Q4_K_M"
"""The quantization that `ollama run hf.co/USER/NAME:Q4_K_M` looks for in the names of files."""


@dataclass(frozen=True)
class File:
    """One file that goes up."""

    name: str
    """Its path in the repository."""
    content: Path | bytes

    @property
    def size(self) -> int:
        """Return its bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size


@dataclass(frozen=True)
class Contents:
    """What goes up of a folder, and what does not."""

    kind: Kind
    files: list[File]
    left_out: list[str]
    """Names in the folder that stay here."""


def read_folder(folder: Path, base: str, gguf: bool) -> Contents:
    """Return what goes up of an adapter's, a model's or a GGUF's folder. Configurations name `base`, never a path.

    Raises `InputError` for a folder that is none of these, lacks a file, or with `gguf` is not what Ollama takes.
    """
    kind = _kind(folder, gguf)
    names = sorted(path.name for path in folder.iterdir())
    going = [name for name in names if any(fnmatch(name, known) for known in FILES[kind])]
    going = [name for name in going if (folder / name).is_file() and not (folder / name).is_symlink()]
    _check_whole(folder, kind, going)
    files = [File(name, _without_paths(folder / name, base)) for name in going]
    if empty := [file.name for file in files if file.size == 0]:
        raise InputError(f"push: {folder / empty[0]} is empty. Make the folder again.")
    return Contents(kind, files, [name for name in names if name not in going])


def bakes_in(contents: Contents, style: ThoughtStyle) -> bool:
    """Return whether a chat template in the folder holds the thought prompt, so that users need not write it."""
    start = style.prompt.partition(PLACEHOLDER)[0].partition('"')[0].strip()
    holders = [file for file in contents.files if file.name in ("chat_template.jinja", "tokenizer_config.json")]
    return style.name == "direct" or any(start and start in _text(file) for file in holders)


def _kind(folder: Path, gguf: bool) -> Kind:
    has_gguf = any(folder.glob("*.gguf"))
    if gguf != has_gguf:
        remedy = "Leave out --gguf." if gguf else "Give --gguf."
        raise InputError(f"push: {folder} holds {'a' if has_gguf else 'no'} GGUF file. {remedy}")
    if has_gguf:
        return "gguf"
    if (folder / "adapter_config.json").exists():
        return "adapter"
    if (folder / "config.json").exists():
        return "merged"
    raise InputError(f"push: {folder} holds neither an adapter nor a model. Give a run's or an export's folder.")


def _check_whole(folder: Path, kind: Kind, going: list[str]) -> None:
    """Raise `InputError` that names what a folder lacks."""
    if kind == "gguf":
        tagged = [name for name in going if OLLAMA_TAG in name.upper() and name.endswith(".gguf")]
        if len(tagged) != 1:
            raise InputError(
                f"push: {folder} has {len(tagged)} files with {OLLAMA_TAG} in their name, and "
                f"`ollama run hf.co/USER/NAME:{OLLAMA_TAG}` needs one."
            )
        needed = ["template", "params"]
        if "params" in going and not isinstance(_json(folder / "params"), dict):
            raise InputError(f"push: {folder / 'params'} is not a JSON object. Write Ollama's parameters into it.")
    elif kind == "adapter":
        needed = ["adapter_config.json", "adapter_model.safetensors"]
    elif "model.safetensors.index.json" in going:
        index = _json(folder / "model.safetensors.index.json")
        needed = ["config.json", *sorted(set(index["weight_map"].values()))]
    else:
        needed = ["config.json", "model.safetensors"]
    if missing := [name for name in needed if name not in going]:
        raise InputError(f"push: {folder} lacks {', '.join(missing)}. Make the folder again.")


def _without_paths(path: Path, base: str) -> Path | bytes:
    """Return a file as it is or, where it says what it was loaded from, with `base` there."""
    if path.suffix != ".json" or path.name in ("tokenizer.json", "vocab.json", "model.safetensors.index.json"):
        return path
    data = _json(path)
    named = [key for key in NAMES_OF_THE_BASE if isinstance(data, dict) and data.get(key) not in (None, "", base)]
    if not named:
        return path
    return (json.dumps(data | dict.fromkeys(named, base), indent=2, ensure_ascii=False) + "\n").encode()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"push: {path} cannot be read ({error}). Make the folder again.") from error


def _text(file: File) -> str:
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    return content.decode("utf-8", "replace")
