"""Puts a finished run on the hub: what goes up, the card, the checks before, and the upload."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tpo_lite.errors import InputError
from tpo_lite.files import read_json
from tpo_lite.people.report import Evidence, gather
from tpo_lite.run import RunFolder
from tpo_lite.share import dataset
from tpo_lite.share.card import Facts, licence_of, model_card, recipe_yaml
from tpo_lite.share.contents import TOKENIZER, Contents, File, bakes_in, read_folder
from tpo_lite.share.private import base_on_hub
from tpo_lite.share.upload import Hub, RepoType


@dataclass(frozen=True)
class Wish:
    """What to push, and how."""

    run: RunFolder
    repo_id: str
    public: bool
    base: str | None
    """The base's hub id, where the recipe's model is none."""
    licence: str | None
    """The licence's id, where the hub does not say it."""


def push_model(wish: Wish, folder: Path | None, gguf: bool, say: Callable[[str], None]) -> str:
    """Push the model in `folder`, or else the run's last adapter or merged model; return the repository's address.

    Raises `InputError` for half a run, a folder that is not whole, and what the hub refuses.
    """
    evidence = _finished(wish.run)
    base = base_on_hub(evidence.recipe, wish.base)
    if folder is not None:
        _check_export(folder, wish.run)
    contents = read_folder(folder or _last_model(wish.run), base, gguf)
    hub = Hub()
    user = hub.check(wish.repo_id, "model", wish.public)
    with hub.saying(base):
        facts = hub.facts(base, "model") if wish.licence is None else {}
    card = model_card(_facts(wish, contents, base, licence_of(facts, wish.licence, base), evidence), evidence)
    files = [File("README.md", card.encode()), File("recipe.yaml", recipe_yaml(evidence).encode()), *contents.files]
    return _send(hub, wish, "model", user, files, contents.left_out, say)


def push_dataset(wish: Wish, say: Callable[[str], None]) -> str:
    """Push the samples and pairs of a finished run; return the repository's address. Raises as `push_model` does."""
    evidence = _finished(wish.run)
    base = base_on_hub(evidence.recipe, wish.base)
    hub = Hub()
    user = hub.check(wish.repo_id, "dataset", wish.public)
    source = evidence.recipe.instructions.source
    with hub.saying(base):
        known = dataset.KNOWN_SOURCES.get(source)
        facts = hub.facts(source.split(":")[1], "dataset") if source.startswith("hub:") else {"license": known}
        its_licence = hub.facts(base, "model").get("license", "unknown")
    licence = licence_of(facts, wish.licence, "the instructions")
    card = dataset.dataset_card(wish.repo_id, licence, base, str(its_licence), evidence)
    with tempfile.TemporaryDirectory() as staged:
        files = [File("README.md", card.encode()), *dataset.files(wish.run, Path(staged))]
        return _send(hub, wish, "dataset", user, files, [], say)


def _send(
    hub: Hub,
    wish: Wish,
    repo_type: RepoType,
    user: str,
    files: list[File],
    left_out: list[str],
    say: Callable[[str], None],
) -> str:
    """List what goes up, and upload it."""
    who = "public, for everyone to see" if wish.public else "private"
    total = sum(file.size for file in files)
    say(f"{wish.repo_id}: a {repo_type} repository of {user}, {who}. What goes up, {_size(total)}:")
    for file in files:
        say(f"  {file.name:<40} {_size(file.size):>10}")
    if left_out:
        say(f"Not sent: {', '.join(left_out)}.")
    return hub.upload(wish.repo_id, repo_type, files, wish.public, say)


def _finished(run: RunFolder) -> Evidence:
    """Return what a finished run found. Raises `InputError` for half a run."""
    evidence = gather(run)
    if evidence.problem:
        raise InputError(f"push: {evidence.problem}")
    if not evidence.finished:
        done = min(len(course.iterations) for course in evidence.courses)
        raise InputError(
            f"push: {run.root} is not finished: {done} of {evidence.recipe.iterations} iterations are complete. Go on "
            "with the `tpo-lite train` command that began it."
        )
    return evidence


def _last_model(run: RunFolder) -> Path:
    """Return the folder of the first arm's last model. Raises `InputError` if that is the base itself."""
    recipe = run.load_started()
    arm = recipe.arms[0]
    model = run.trained(arm, recipe.iterations)
    found = run.warm_adapter(arm)
    if model:
        found = run.iteration(arm, model - 1) / ("model" if recipe.merge == "requantize" else "adapter")
    if found is None:
        raise InputError("push: the judge preferred no checkpoint to M_0, so there is no model but the base to push.")
    return found


def _check_export(folder: Path, run: RunFolder) -> None:
    """Raise `InputError` if an export says that it is another model than the one that the card would describe."""
    record = folder / "export.json"
    if not record.exists():
        return
    recipe = run.load_started()
    described = f"{recipe.arms[0]} M_{run.trained(recipe.arms[0], recipe.iterations)}"
    if (held := read_json(record).get("model")) != described:
        raise InputError(f"push: {folder} holds {held}, and the card would describe {described}. Export that one.")


def _facts(wish: Wish, contents: Contents, base: str, licence: dict[str, str], evidence: Evidence) -> Facts:
    recipe = evidence.recipe
    style = recipe.style(recipe.arms[0])
    names = {file.name for file in contents.files}
    own = bool(names & set(TOKENIZER))
    return Facts(wish.repo_id, contents.kind, base, licence, bakes_in(contents, style), own, style)


def _size(size: int) -> str:
    """Return bytes as the hub counts them, in powers of 1,000."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} B"
