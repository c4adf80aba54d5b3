"""What the tests of the GGUF judge share: a short prompt, requests, and models that say what a test wants."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.judges.gguf import GgufJudge
from tpo_lite.judges.protocol import JudgeRequest
from tpo_lite.llamacpp.leaves import Leaf

SHORT = "{instruction}\nA: {response_a}\nB: {response_b}"
REQUESTS = [
    JudgeRequest("Add 1 and 2.", "It is 3.", "It is 4."),
    JudgeRequest("Add 1 and 2.", "It is 4.", "It is 3."),
    JudgeRequest("Name a colour.", "Red", "The number seven, I think, is the best of all."),
]


def scripted(tmp_path: Path, *script: str, **options) -> Path:
    """A model that speaks token by token: "Ċ" is a newline and "Ġ" a space in byte-level BPE."""
    return write_tiny_gguf(tmp_path / "scripted.gguf", script=script, **options)


def leaf_of(judge: GgufJudge, request: JudgeRequest) -> Leaf:
    """What the judge decodes for a request that fits."""
    question = judge.question(request)
    assert question is not None
    return question.leaves[0]


def prompt_of(judge: GgufJudge, request: JudgeRequest) -> str:
    """The tokens that the judge reads, as text with its control tokens."""
    return judge.decoder.detokenize(leaf_of(judge, request).tokens, special=True)
