"""An nvidia-smi that says what a test wants."""


def fake_nvidia_smi(folder, monkeypatch, script):
    """Puts an nvidia-smi on the path, and nothing else there; None: an empty path."""
    if script is not None:
        program = folder / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
