"""Turns what a recipe calls a model or a judge into something on disk."""

from __future__ import annotations

from pathlib import Path

from tpo_lite.errors import InputError

ASSETS = Path(__file__).parent / "embedded" / "assets"
EMBEDDED_JUDGE_PROMPT = Path(__file__).parent / "embedded" / "judge_prompt.txt"


def model_path(name: str) -> str:
    """A folder or hub id that transformers loads. Raises `InputError` for a folder that is no model."""
    if name == "embedded":
        return str(ASSETS / "policy")
    path = Path(name).expanduser()
    if not path.exists():
        if name.count("/") == 1 and not name.startswith((".", "~")):
            return name  # a hub id; transformers reports it if the hub has none
        raise InputError(f"model: no folder {name!r}. Give a folder with config.json or a hub id (owner/name).")
    for file in ("config.json", "tokenizer_config.json"):
        if not (path / file).is_file():
            raise InputError(f"model: {path} has no {file}. Give a complete Hugging Face model folder.")
    return str(path)


def judge_path(name: str) -> Path:
    """The GGUF file of the judge; one on the hub is downloaded into the hub's cache."""
    if name == "embedded":
        return ASSETS / "judge.gguf"
    if name.startswith("hub:"):
        parts = name.removeprefix("hub:").split("/")
        if len(parts) < 3:
            raise InputError(f"judge.model: {name!r} is not hub:owner/repo/file.gguf.")
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(hf_hub_download("/".join(parts[:2]), "/".join(parts[2:])))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(f"judge.model: cannot download {name!r}: {error}. Check the name and the network.") from error
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"judge.model: no file {name!r}. Give a GGUF file or hub:owner/repo/file.gguf.")
    return path
