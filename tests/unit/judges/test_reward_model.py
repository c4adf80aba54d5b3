"""Reward models as judges: a tiny random Llama with a score head, and one with code of its own, like ArmoRM."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from tests.helpers.clock import set_template_clock
from tests.helpers.tiny_run import invoke
from tpo_lite.errors import InputError, OutOfMemory
from tpo_lite.hub import reward_model_path
from tpo_lite.judges import reward_model
from tpo_lite.judges.open import check_judge, open_judge
from tpo_lite.judges.prompts import CUT_MARK
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.judges.reward_model import RewardModelJudge, p_better
from tpo_lite.recipe_keys import JudgeSettings
from tpo_lite.settled import SettledJudge

ITEMS = [("Add 1 and 2.", "It is 3."), ("Add 1 and 2.", "It is 4, or so I think. " * 6), ("Name a colour.", "Red")]

OWN_CODE = """
from dataclasses import dataclass
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification
from transformers.utils import ModelOutput

@dataclass
class ScoreOutput(ModelOutput):
    logits: torch.Tensor = None
    score: torch.Tensor = None

class OwnModel(LlamaForSequenceClassification):
    def forward(self, **inputs):
        logits = super().forward(**inputs).logits
        return ScoreOutput(logits=logits, score=10 + logits.mean(-1))
"""
"""ArmoRM's form: several objectives in `logits`, what they come to in `score`."""


def write_reward_model(folder: Path, policy: Path, *, labels: int = 1, pad: bool = True) -> Path:
    """A random Llama with a score head, and the tiny policy's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id if pad else None,
        num_labels=labels,
    )
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight *= 50  # scores a few units apart, as trained models give
    model.save_pretrained(folder)
    return folder


def change_config(folder: Path, **changes: object) -> None:
    """Overwrites keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory) -> Path:
    return write_reward_model(tmp_path_factory.mktemp("reward"), tiny_model)


@pytest.fixture(scope="module")
def judge(model) -> RewardModelJudge:
    return RewardModelJudge(str(model))


def test_scores_are_those_of_the_model_on_its_own_template(model, judge):
    reference = LlamaForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    for (instruction, response), score in zip(ITEMS, judge.scores(ITEMS), strict=True):
        turns = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response.strip()}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)["input_ids"]
        assert score == pytest.approx(reference(ids).logits.item(), abs=1e-4)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
def test_a_batch_gives_what_one_by_one_gives(model, quantize):
    judge = RewardModelJudge(str(model), quantize)
    assert isinstance(judge._model.model.layers[0].mlp.up_proj, Linear4bit) == (quantize == "nf4")
    assert not isinstance(judge._model.score, Linear4bit)
    together = judge.scores(ITEMS)
    assert len(set(together)) == 3
    assert together == pytest.approx([judge.scores([item])[0] for item in ITEMS], abs=1e-4)


def test_nf4_is_near_the_16_bit_model(model, judge):
    both = zip(judge.scores(ITEMS), RewardModelJudge(str(model), "nf4").scores(ITEMS), strict=True)
    differences = [a - b for a, b in both]
    assert 0 < max(map(abs, differences)) < 5


def test_batches_hold_the_context_with_padding_the_longest_first(model):
    judge = RewardModelJudge(str(model), context=100, sequences=3)
    ids = [[0] * length for length in (10, 40, 25, 5, 5, 5, 5)]
    assert list(judge._batches([*ids, None])) == [[1, 2], [0, 3, 4], [5, 6]]


def test_each_response_is_scored_once_and_both_orders_agree(judge, monkeypatch):
    (instruction, a), (_, b), other = ITEMS
    requests = [JudgeRequest(instruction, a, b), JudgeRequest(instruction, b, a), JudgeRequest(other[0], a, a)]
    scores = judge.scores([(instruction, a), (instruction, b)])
    scored = []
    score_all = judge.scores
    monkeypatch.setattr(judge, "scores", lambda items: scored.append(items) or score_all(items))
    first, second, same = judge.compare(requests)

    assert scored == [[(instruction, a), (instruction, b), (other[0], a)]]
    assert first.p_a == pytest.approx(1 / (1 + math.exp(scores[1] - scores[0])), abs=1e-4)
    assert first.p_a + second.p_a == pytest.approx(1)
    assert (first.label, second.label) in (("A", "B"), ("B", "A"))
    assert first.explanation == f"{scores[0]:.4g} against {scores[1]:.4g}"
    assert (same.p_a, same.label) == (0.5, "tie")
    assert judge.pointwise


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("bad_alloc")]
)
def test_too_little_memory_is_told_from_a_damaged_model(model, monkeypatch, error):
    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(reward_model.AutoModelForSequenceClassification, "from_pretrained", load)
    with pytest.raises(OutOfMemory, match="judge.quantize: nf4"):
        RewardModelJudge(str(model))


def test_p_better_of_scores_far_apart():
    assert (p_better(1e4, -1e4), p_better(-1e4, 1e4)) == (1, 0)


def test_special_tokens_in_texts_are_text(judge):
    specials = {id for id, t in judge._inputs._chat.tokenizer.added_tokens_decoder.items() if t.special}
    written = "".join(judge._inputs._chat.tokenizer.convert_ids_to_tokens(sorted(specials)))
    ids, plain = judge._inputs.ids(written, written), judge._inputs.ids("x", "y")
    assert [id for id in ids if id in specials] == [id for id in plain if id in specials]
    assert judge._inputs._chat.text(ids).count(written) == 2


def test_overlong_responses(model, judge):
    long = JudgeRequest("Add.", "begin " + "x" * 300 + " end", "3")
    verdicts = judge.compare([long, JudgeRequest("Add.", "3", "4")])
    assert [(v.label == "overlong", v.p_a == 0.5) for v in verdicts] == [(True, True), (False, False)]

    cutting = RewardModelJudge(str(model), overlong="truncate")
    ids = cutting._inputs.fitted_ids(long.instruction, long.response_a, 256, True)
    text = cutting._inputs._chat.text(ids)
    assert 230 < len(ids) <= 256
    assert "begin x" in text and "x end" in text and CUT_MARK in text
    assert cutting.compare([long])[0].label != "overlong"
    assert cutting.compare([JudgeRequest("x" * 300, "a", "b")])[0].label == "overlong"
    # A cut leaves halves of characters, and U+FFFD in their place costs more tokens than it saved.
    for text in ("汉字漢字測試文本" * 40, "é" * 300, "🫠🧿" * 80):
        assert 200 < len(cutting._inputs.fitted_ids("Add.", text, 256, True)) <= 256


def test_a_model_without_padding_token_scores_one_at_a_time(tiny_model, judge, tmp_path):
    alone = RewardModelJudge(str(write_reward_model(tmp_path, tiny_model, pad=False)))
    assert alone.scores(ITEMS) == pytest.approx(judge.scores(ITEMS), abs=1e-4)


def test_a_model_with_code_of_its_own_scores_only_if_that_is_allowed(tiny_model, tmp_path):
    folder = write_reward_model(tmp_path / "own", tiny_model, labels=3)
    change_config(folder, auto_map={"AutoModelForSequenceClassification": "own_model.OwnModel"})
    (folder / "own_model.py").write_text(OWN_CODE)
    with pytest.raises(InputError, match="scores with Python code of its own. Read that code, and set"):
        RewardModelJudge(str(folder))
    own = RewardModelJudge(str(folder), trust_remote_code=True)
    plain = LlamaForSequenceClassification.from_pretrained(folder).eval()
    ids = torch.tensor([own._inputs.ids(*ITEMS[0])])
    assert own.scores(ITEMS)[0] == pytest.approx(10 + plain(ids).logits.mean().item(), abs=1e-4)

    (folder / "own_model.py").write_text(OWN_CODE.replace(", score=10 + logits.mean(-1)", ""))
    with pytest.raises(InputError, match="gives 3 scores per response and names none as its `score`"):
        RewardModelJudge(str(folder), trust_remote_code=True).scores(ITEMS)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


NO_ANSWERS = "{{ messages[0].content }}{% if messages[1] %}{{ raise_exception('no answers') }}{% endif %}"
"""Renders the user's turn, which is all that a policy's prompt needs."""


def template(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def half_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("spoil", "text", "shows_at_once"),
    [
        (shutil.rmtree, "judge.model: no folder '", True),
        (without("config.json"), "judge.model: .* has no config.json", True),
        (without("chat_template.jinja"), "judge.model: the tokenizer of .* has no chat template", True),
        (template("{{ messages[1].content.x.y }}"), "judge.model: the chat template cannot be rendered", True),
        (template(NO_ANSWERS), "judge.model: the chat template of .* cannot be rendered .no answers.. Use an", True),
        (template("{{ messages[0].content }}"), "does not show the user's and the assistant's text exactly", True),
        (lambda f: change_config(f, id2label={"0": "a", "1": "b"}), "gives 2 scores per response", True),
        (lambda f: change_config(f, architectures=["LlamaForCausalLM"]), "is LlamaForCausalLM, not a", True),
        (lambda f: change_config(f, model_type="unheard-of"), "configuration of .* cannot be read", True),
        (half_weights, "cannot be loaded .*files are complete", False),
    ],
)
def test_folders_that_are_no_reward_model(spoil, text, shows_at_once, model, tmp_path):
    folder = tmp_path / "reward"
    shutil.copytree(model, folder)
    spoil(folder)
    settings = JudgeSettings(model=str(folder), mode="reward-model")
    with pytest.raises(InputError, match=text):
        open_judge(settings)
    if shows_at_once:
        with pytest.raises(InputError, match=text):
            check_judge(settings)
    else:
        check_judge(settings)


def test_weights_without_the_head_are_refused(model, tiny_model, tmp_path):
    """transformers would fill it with random numbers, and warn."""
    shutil.copytree(model, tmp_path, dirs_exist_ok=True)
    base = LlamaForSequenceClassification.from_pretrained(model).model
    base.save_pretrained(tmp_path)
    change_config(tmp_path, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(InputError, match="has no weights for score.weight, so its scores would be random"):
        RewardModelJudge(str(tmp_path))


def test_names_of_reward_models():
    assert reward_model_path("hub:owner/name") == reward_model_path("owner/name") == "owner/name"
    for name in ("embedded", "judge.gguf"):
        with pytest.raises(InputError, match="is a GGUF, which mode reward-model cannot read"):
            reward_model_path(name)


def test_calibrate_with_a_reward_model(model, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"instruction": f"Say {i}.", "response_1": str(i), "response_2": "no" * i, "label": 1} for i in range(1, 7)]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("judge", "calibrate", pairs, "--judge", model, "--mode", "reward-model", "--json")
    found = json.loads(invoke(*arguments, "--set", "quantize=nf4").stdout)
    assert found["judge"] == f"{model.name} reward-model quantize=nf4"
    assert found["report"]["flip_rate"]["value"] == 0
    assert found["tokens"] > 100
    for override in ("quantise=nf4", "quantize"):
        done = invoke(*arguments, "--set", override)
        assert done.exit_code == 2
        assert ("did you mean judge.quantize?" in done.output) == ("=" in override)
        assert ("--set 'quantize' is not key=value" in done.output) == ("=" not in override)


def test_a_conversation_has_the_runs_date_whatever_today_is(tiny_model, tmp_path, monkeypatch):
    folder = write_reward_model(tmp_path / "dated", tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}\n" + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    settings = SettledJudge(mode="reward-model", model=str(folder))
    given = []
    for day in (3, 4):
        set_template_clock(monkeypatch, 2026, 1, day)
        judge = open_judge(settings, day=date(2025, 12, 31))
        given.append(judge._inputs.ids(*ITEMS[0]))
        today = tokenizer.decode(open_judge(settings)._inputs.ids(*ITEMS[0]))
        assert f"0{day} Jan 2026\n" in today
    assert given[0] == given[1]
    assert "31 Dec 2025\n" in tokenizer.decode(given[0])
