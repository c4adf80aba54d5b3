"""What of a run is nobody else's business: folders of this machine, and the addresses of its servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tpo_lite.errors import InputError
from tpo_lite.hub import hub_file, is_gguf, is_hub_id
from tpo_lite.recipe import Recipe
from tpo_lite.recipe_keys import JudgeSettings

FILES = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".yaml", ".gguf")
"""How names of local files end. Ids on the hub may end so too, but then begin with `hub:`."""


def without_folders(value: Any) -> Any:
    """Return a recipe's values with local paths cut to their last part.

    >>> without_folders({"model": "/home/me/models/mine", "judge": {"model": "hub:owner/repo/judge.gguf"}})
    {'model': 'mine', 'judge': {'model': 'hub:owner/repo/judge.gguf'}}
    """
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    return _last_part(value) if isinstance(value, str) and _is_local(value) else value


def shared_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as others may see it: without folders, and without the address of a judge's server.

    It holds a `Recipe`'s keys only, so that `tpo-lite train --recipe` takes it.
    """
    data: dict[str, Any] = without_folders(recipe.model_dump(include=set(Recipe.model_fields)))
    usual = JudgeSettings.model_fields["base_url"].default
    for judge in (data["judge"], data["select"]["judge"] or {}):
        if judge.get("base_url") != usual:
            judge.pop("base_url", None)
    return data


def base_on_hub(recipe: Recipe, given: str | None) -> str:
    """Return the hub id of the base: `given`, or else that of the recipe's model.

    Raises `InputError` where neither is an id, such as for a local folder.
    """
    name = given or recipe.model
    if given is None and name.startswith("hub:") and is_gguf(name):
        name = hub_file(name, "model")[0]
    if name == "embedded" or not is_hub_id(name) or is_gguf(name) or (given is None and Path(name).exists()):
        what = f"--base-model {given!r}" if given else f"the run's model {_last_part(recipe.model)!r}"
        raise InputError(f"push: {what} is no id on the hub. Give the base as --base-model OWNER/NAME.")
    return name


def _is_local(text: str) -> bool:
    if text.startswith(("/", "~", "./", "../")):
        return True
    return "/" in text and "\n" not in text and not text.startswith(("hub:", "http")) and _looks_local(text)


def _looks_local(text: str) -> bool:
    try:
        return text.endswith(FILES) or Path(text).exists()
    except OSError:  # too long for a path
        return False


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
