"""Where the files of a recipe's model and judge are: in the package, in a folder, or on the Hugging Face Hub."""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path

from tpo_lite.errors import InputError

ASSETS = Path(__file__).parent / "embedded" / "assets"
EMBEDDED_JUDGE_PROMPT = Path(__file__).parent / "embedded" / "judge_prompt.txt"

OTHER_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
"""What belongs to a model besides its weights: configuration, tokenizer, chat template."""


def model_path(name: str, key: str = "model") -> str:
    """Return the folder or hub id of a model, for transformers to load. `key` is the recipe's key that names it.

    Raises `InputError` for a folder that is missing or is not a complete model.
    """
    path = model_folder(name)
    if not path.exists():
        if is_hub_id(name):
            return name  # transformers reports an id that the hub does not have
        raise _no_folder(name, key)
    for file in ("config.json", "tokenizer_config.json"):
        if not (path / file).is_file():
            raise InputError(f"{key}: {path} has no {file}. Give a complete Hugging Face model folder.")
    return str(path)


def judge_path(name: str, key: str = "judge.model") -> Path:
    """Return the GGUF file of a judge, downloaded into the hub's cache if it is on the hub.

    `hub:owner/repo/*Q4_K_M.gguf` takes the one file that matches. `key` is the recipe's key that names the file. Raises
    `InputError` if there is no such file, or more than one.
    """
    if name == "embedded":
        return ASSETS / "judge.gguf"
    if name.startswith("hub:"):
        return _from_hub(*hub_file(name, key), key)
    path = Path(name).expanduser()
    if not path.is_file():
        raise InputError(f"{key}: no file {name!r}. Give a GGUF file or hub:owner/repo/file.gguf.")
    return path


def is_gguf(model: str) -> bool:
    """Return whether a recipe's `model` is a GGUF file, here or on the hub."""
    return model.endswith(".gguf")


def gguf_path(model: str) -> Path:
    """Return the GGUF file that a recipe's `model` is, as `judge_path` does for a judge."""
    return judge_path(model, "model")


def reward_model_path(name: str) -> str:
    """Return the folder or hub id of a reward model, for transformers to load; a hub id may begin with `hub:`.

    Raises `InputError` for a GGUF, and for a folder that is missing or is not a complete model.
    """
    if name == "embedded" or is_gguf(name):
        raise InputError(
            f"judge.model: {name} is a GGUF, which mode reward-model cannot read. Give a folder or hub id "
            "(owner/name) of a sequence-classification model, or use mode score."
        )
    return model_path(name.removeprefix("hub:"), "judge.model")


def model_folder(name: str) -> Path:
    """Return the folder that a model's name means unless it is a hub id; it may not exist."""
    return ASSETS / "policy" if name == "embedded" else Path(name).expanduser()


def is_hub_id(name: str) -> bool:
    """Return whether a model that is not a folder can be a hub id (owner/name)."""
    return name.count("/") == 1 and not name.startswith((".", "~", "/"))


def hub_file(name: str, key: str) -> tuple[str, str]:
    """Return repository and file pattern of hub:owner/repo/file.gguf. Raises `InputError` if a part is missing."""
    parts = name.removeprefix("hub:").split("/", 2)
    if len(parts) < 3 or not parts[2]:
        raise InputError(f"{key}: {name!r} is not hub:owner/repo/file.gguf.")
    return "/".join(parts[:2]), parts[2]


def local_file(model: str, file: str) -> Path | None:
    """Return the path of a model's file: in the model's folder, or for a hub id in the hub's cache.

    None if the cache does not have it. In a folder, the file may be missing.
    """
    folder = model_folder(model)
    return folder / file if folder.exists() else cached_file(model, file)


def local_config(model: str, key: str) -> Path | None:
    """Return a model's config.json as `local_file` does.

    Raises `InputError` for a name that is neither a folder nor a hub id.
    """
    if not model_folder(model).exists() and not is_hub_id(model):
        raise _no_folder(model, key)
    return local_file(model, "config.json")


def cached_file(repository: str, pattern: str) -> Path | None:
    """Return the newest file that matches `pattern` in the hub's cache of a repository."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = Path(HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "snapshots"
    return max(snapshots.glob(f"*/{pattern}"), key=lambda path: path.stat().st_mtime, default=None)


def download_config(repository: str, key: str) -> Path:
    """Return config.json of a repository, downloaded into the hub's cache. Raises `InputError` if that fails."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, "config.json"))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise InputError(
            f"{key}: the config of {repository} is not in the hub's cache and cannot be downloaded "
            f"({type(error).__name__}). Check the name and the network, or give a local folder with its config.json."
        ) from error


def to_download(model: str) -> str | None:
    """Return what to tell a user who will wait while a model's weights are downloaded; None if they are here."""
    if model_folder(model).exists() or cached_file(model, "*.safetensors") is not None:
        return None
    return f"downloading {model} from the hub; that may take long, and what is downloaded is kept"


def local_folder(model: str) -> Path:
    """Return the folder with a model's files; a hub id is downloaded into the hub's cache."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model, allow_patterns=["*.safetensors", *OTHER_FILES]))


def _from_hub(repository: str, pattern: str, key: str) -> Path:
    """Return the one file of a hub repository that matches `pattern`, downloaded into the hub's cache."""
    import httpx
    from huggingface_hub import hf_hub_download, list_repo_files
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if cached_file(repository, pattern) is None:
        print(f"downloading {repository}/{pattern} from the hub; that may take long", file=sys.stderr, flush=True)
    try:
        if "*" not in pattern:
            return Path(hf_hub_download(repository, pattern))
        matches = [file for file in list_repo_files(repository) if fnmatch(file, pattern)]
        if len(matches) != 1:
            raise InputError(
                f"{key}: {pattern!r} matches {len(matches)} files of {repository}, not one: {', '.join(matches)}."
            )
        return Path(hf_hub_download(repository, matches[0]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, httpx.HTTPError) as error:
        raise InputError(
            f"{key}: cannot download {pattern!r} of {repository} ({error}). Check the name and the network."
        ) from error


def _no_folder(name: str, key: str) -> InputError:
    return InputError(f"{key}: no folder {name!r}. Give a folder with config.json or a hub id (owner/name).")
