"""What `tpo-lite watch` reads from a run folder."""

import os

from tests.helpers.hostile import HOSTILE
from tests.helpers.tiny_run import invoke
from tests.helpers.written_run import Texts, written_run
from tpo_lite.people.watching import Progress, look
from tpo_lite.people.words import visible


def test_a_finished_run(tmp_path):
    seen = look(written_run(tmp_path / "run"))
    assert (seen.phase, seen.label, seen.progress, seen.process) == (None, "finished", None, None)
    assert seen.thought.instruction == "Name river 3."


def test_a_run_in_the_middle_of_a_phase(tmp_path):
    run = written_run(tmp_path / "run")
    here = run.iteration("thinking", 1)
    for phase in ("judge", "pair", "dpo", "validate", "select", "fold"):
        (here / "done" / f"{phase}.json").unlink()
    path = here / "judgements.jsonl"
    path.write_bytes(path.read_bytes()[:-100])  # a kill cut off the last of three lines
    run.instructions("iteration-1").write_text("{}\n" * 3)
    (run.root / ".phase.lock").write_text(str(os.getpid()))
    seen = look(run)
    assert seen.label == "thinking, iteration 2, judge" and seen.progress == Progress(2, 3, "prompts")
    assert seen.process is None or seen.memory > 1 << 20  # pytest's command line may or may not name tpo_lite
    (run.root / ".phase.lock").write_text("999999999")
    assert look(run).process is None


def test_without_a_terminal_it_prints_once_and_no_terminal_codes(tmp_path):
    run = written_run(tmp_path / "run", Texts(HOSTILE, HOSTILE, prompts=len(HOSTILE)))
    for number in range(3):
        assert "\x1b" not in visible(look(run, number).thought.response)
    done = invoke("watch", run.root)
    assert done.exit_code == 0 and "finished" in done.output and "\x1b" not in done.output


def test_what_is_no_run_is_refused(tmp_path):
    done = invoke("watch", tmp_path)
    assert done.exit_code == 2 and "is not a run folder" in done.output
