"""report.html without a browser: well-formed, self-contained, small, and no text of the run in it is markup."""

import base64
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from tests.helpers.hostile import HOSTILE, LONG_LINE
from tests.helpers.tiny_run import invoke
from tests.helpers.written_run import Texts, written_run
from tpo_lite.cli.plan import record_plan
from tpo_lite.cli.report import report_at_end
from tpo_lite.files import read_json, read_sealed, write_json, write_sealed
from tpo_lite.people import report
from tpo_lite.people.costs import read_plan
from tpo_lite.people.report import write_report
from tpo_lite.run import RunFolder

VOID = {"meta", "link", "input", "br", "path", "rect", "line", "use", "g", "defs"}


class Page(HTMLParser):
    """Elements and scripts of a page; fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            kind = dict(self.elements[-1][1]).get("type") or self.open[-1]
            self.raw[kind] = self.raw.get(kind, "") + data
        else:
            self.text += data


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    run = written_run(tmp_path_factory.mktemp("plain") / "run", baseline=True)
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(plain):
    return Page((plain.root / "report.html").read_text(encoding="utf-8"))


def test_the_policy_runs_the_page_s_own_script_and_style_and_allows_no_network(page):
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and "http-equiv" in a)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    for rule, raw in (("script-src", page.raw["script"]), ("style-src", page.raw["style"])):
        digest = base64.b64encode(hashlib.sha256(raw.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"


def test_nothing_in_the_page_is_outside_it_and_no_attribute_is_code(page):
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#") or attributes[name] == "data:,", (tag, attributes)


def test_ids_are_unique_and_every_reference_has_one(page):
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        wanted = set((attributes.get("aria-labelledby") or "").split())
        wanted |= set(re.findall(r"url\(#([^)]+)\)", " ".join(filter(None, attributes.values()))))
        wanted |= {attributes["href"][1:]} if (attributes.get("href") or "").startswith("#") else set()
        assert wanted <= set(ids), attributes


def test_the_page_has_every_part(page):
    titles = ["Is my DPO working?", "Curves", "Models", "Categories", "Read the thoughts", "Time and memory", "Recipe"]
    assert [title for title in titles if title not in page.text] == []
    assert "the judge that trained the model" in page.text
    assert "75.0 %" in page.text and "direct baseline" in page.text
    data = json.loads(page.raw["application/json"])
    assert [line["part"] for line in data["index"]] == ["validation"] * 3 + ["iteration-0"] * 3 + ["iteration-1"] * 3
    assert data["files"] == 0 and len(data["pages"][0]) == 9


def test_a_test_slice_is_what_models_are_reported_on(tmp_path):
    run = written_run(tmp_path / "run", baseline=True, test=True)
    write_report(run)
    found = Page((run.root / "report.html").read_text(encoding="utf-8"))
    assert "wins 100.0 % of comparisons on 3 held-out prompts" in found.text  # on the validation slice it is 75 %
    assert "also chose the checkpoints" not in found.text and "Thinking against direct" in found.text
    data = json.loads(found.raw["application/json"])
    assert [name for name, _ in data["parts"]] == ["test", "validation", "iteration-0", "iteration-1"]


def test_the_same_run_gives_the_same_report(plain):
    first = (plain.root / "report.html").read_bytes()
    write_report(plain)
    assert (plain.root / "report.html").read_bytes() == first


def test_hostile_texts_stay_text(tmp_path):
    texts = Texts(HOSTILE, [*HOSTILE, LONG_LINE], category=HOSTILE[1], prompts=len(HOSTILE))
    run = written_run(tmp_path / "run", texts, iterations=1)
    path = run.base_answers("thinking", "validation")
    path.write_text(path.read_text().replace('"Lakes"', '"\\ud800 \\u202e\\u001b[31m"'))  # as JSON may hold it
    write_report(run)
    text = (run.root / "report.html").read_text(encoding="utf-8")
    found = Page(text)
    assert "[U+D800] [U+202E]\N{SYMBOL FOR ESCAPE}[31m" in found.text
    assert [tag for tag, _ in found.elements].count("script") == 2
    assert not {"img", "iframe", "object", "template", "title2"} & {tag for tag, _ in found.elements}
    assert "<script>window" not in text and html.escape(HOSTILE[1]) in text  # the category, in a table
    assert "49" not in found.text.split("Categories")[1].split("Read the thoughts")[0]  # no 7 * 7
    entries = [entry for part in json.loads(found.raw["application/json"])["pages"] for entry in part]
    shown = {entry["text"] for entry in entries if entry["part"] == "validation"}
    assert shown == set(HOSTILE)
    assert len(text.encode()) < 5_000_000


def test_samples_that_do_not_fit_lie_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "INLINE_BYTES", 4_000)
    monkeypatch.setattr(report, "PAGE_BYTES", 2_000)
    run = written_run(tmp_path / "run")
    (run.root / "report-data").mkdir()
    (run.root / "report-data" / "9999.js").write_text("old")
    write_report(run)
    found = Page((run.root / "report.html").read_text(encoding="utf-8"))
    data = json.loads(found.raw["application/json"])
    files = sorted((run.root / "report-data").iterdir())
    assert data["files"] == len(files) > 0 and 0 < len(data["pages"]) < 9
    assert [path.name for path in files] == [f"{len(data['pages']) + n:04d}.js" for n in range(len(files))]
    policy = next(a["content"] for tag, a in found.elements if tag == "meta" and "http-equiv" in a)
    assert "script-src 'sha256-" in policy and "' 'self' file:;" in policy


def test_a_run_that_is_not_finished_has_a_report(plain, tmp_path):
    shutil.copytree(plain.root, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    for arm in ("thinking", "direct"):
        shutil.rmtree(run.iteration(arm, 1))
    (run.iteration("direct", 0) / "done" / "fold.json").unlink()
    (run.iteration("direct", 0) / "scores.jsonl").unlink()
    write_report(run)
    found = Page((run.root / "report.html").read_text(encoding="utf-8"))
    assert "0 of 2 iterations are complete in every arm" in found.text and "Curves" in found.text
    for name in ("thinking", "direct", "instructions"):
        shutil.rmtree(run.root / name)
    write_report(run)
    found = Page((run.root / "report.html").read_text(encoding="utf-8"))
    assert "No iteration is finished yet" in found.text and "Read the thoughts" not in found.text


def test_figures_of_another_version_are_left_out_and_the_samples_are_shown(plain, tmp_path):
    shutil.copytree(plain.root, tmp_path / "run")
    path = tmp_path / "run" / "thinking" / "iteration-0" / "done" / "judge.json"
    data = read_sealed(path)
    data["summary"]["invented"] = 1
    write_sealed(path, data)
    write_report(RunFolder(tmp_path / "run"))
    found = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "There are no figures" in found.text and "Read the thoughts" in found.text


def test_the_plan_stands_beside_what_was_measured(plain, tmp_path):
    shutil.copytree(plain.root, tmp_path / "run")
    phase = {"peak_bytes": 3 << 30, "seconds": 60.0}
    card = {"name": "RTX 3060", "bytes": 12 << 30, "cuda": True}
    write_json(tmp_path / "run" / "plan.json", {"card": card, "phases": {"dpo": phase}})
    write_report(RunFolder(tmp_path / "run"))
    found = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    assert "RTX 3060, 12.0 GiB" in found.text and "3.00 GiB" in found.text


def test_the_plan_is_recorded_once(tmp_path):
    run = written_run(tmp_path / "run", iterations=1)
    record_plan(run, None)
    plan = read_json(run.root / "plan.json")
    assert plan["card"]["name"] == "CPU" and plan["phases"]["dpo"]["peak_bytes"] > 0
    write_json(run.root / "plan.json", {})
    record_plan(run, None)
    assert read_json(run.root / "plan.json") == {}
    assert read_plan(run) is None


def test_a_report_that_fails_does_not_make_a_run_fail(plain, tmp_path, capsys):
    report_at_end(plain)
    assert capsys.readouterr().out == f"report: {plain.root / 'report.html'}\n"
    report_at_end(RunFolder(tmp_path))
    assert capsys.readouterr().err.startswith("no report: ")


def test_the_command_says_where_the_report_is_and_refuses_what_is_no_run(plain, tmp_path):
    done = invoke("report", plain.root)
    assert done.exit_code == 0 and done.output == f"report: {plain.root / 'report.html'}\n"
    done = invoke("report", tmp_path)
    assert done.exit_code == 2 and "is not a run folder" in done.output
