"""What a run says before a phase has loaded its models."""

from tpo_lite.loop import orchestrator
from tpo_lite.run import RunFolder


def test_a_phase_says_that_it_starts(tmp_path, monkeypatch, capsys):
    said = []
    monkeypatch.setattr(orchestrator, "process", lambda *_: said.append(capsys.readouterr().out) or 0)
    orchestrator._phase(RunFolder(tmp_path), "prepare", None, 0, False)
    orchestrator._phase(RunFolder(tmp_path), "judge", "direct", 1, False)
    assert said == ["prepare: starting\n", "direct 2 judge: starting\n"]
