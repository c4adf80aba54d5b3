"""A cache of one stream per sequence against a unified one and against llama_cpp.Llama."""

from __future__ import annotations

import llama_cpp
import numpy as np
import pytest

from tests.helpers.reference import ROUNDING, reference_logits
from tpo_lite.llamacpp import context
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Continuation, Decision, Leaf


def test_streams_take_the_size_of_the_longest_leaf(model, prompts, reference):
    """Each call has as many sequences as fit: 8 streams of 256 cells, then 4 of 512, then 8 again."""
    streams = LlamaCpp(model, n_ctx=2048, n_batch=128, n_seq_max=32, n_threads=1, kv_unified=False)
    long = [*prompts[0], *range(3, 250)]
    for leaves in ([*prompts], [*prompts, long], [*prompts]):
        for tokens, decoded in zip(leaves, streams.decode([Leaf(tokens) for tokens in leaves]), strict=True):
            np.testing.assert_allclose(decoded.logits, reference_logits(reference, tokens), atol=ROUNDING)


def test_continuations_of_different_lengths_stay_side_by_side_in_streams(model, prompts, monkeypatch):
    """Where one ends and no leaf waits, the last takes its place: llama.cpp decodes consecutive streams together."""
    streams = LlamaCpp(model, n_ctx=4096, n_batch=64, n_seq_max=16, n_threads=1, kv_unified=False)
    rows = []
    decode_batch = streams.decode_batch
    monkeypatch.setattr(
        streams, "decode_batch", lambda parts: (rows.append([s.seq for s, _ in parts]), decode_batch(parts))[1]
    )
    lengths = [3, 17, 9, 30, 5]
    alone = [streams.decode([Leaf(prompts[1], Continuation(n))])[0].tokens for n in lengths]
    rows.clear()
    together = streams.decode([Leaf(prompts[1], Continuation(n)) for n in lengths])

    assert [decoded.tokens for decoded in together] == alone
    steps = [sequences for sequences in rows if len(sequences) > 1]
    assert steps and all(sequences == list(range(len(sequences))) for sequences in steps)


def test_one_stream_holds_all_of_the_context(model, prompts, reference):
    """1,000 cells are no multiple of what llama.cpp gives a stream."""
    streams = LlamaCpp(model, n_ctx=1000, n_seq_max=4, n_threads=1, kv_unified=False)
    tokens = [*prompts[0], *range(3, 250), *range(3, 250), *range(3, 250), *range(3, 200)]
    assert 768 < len(tokens) < 1000
    (decoded,) = streams.decode([Leaf(tokens)])
    assert np.abs(decoded.logits - reference_logits(reference, tokens)).max() < 5 * ROUNDING


@pytest.mark.parametrize("seed", range(12))
def test_streams_and_a_unified_cache_agree_on_any_tree(model, seed):
    """Prompts longer than a batch, prefixes at all depths, continuations that end at different times."""
    rng = np.random.default_rng(seed)
    leaves = []
    for _ in range(rng.integers(1, 4)):
        root = rng.integers(3, 200, rng.integers(1, 90)).tolist()
        for _ in range(rng.integers(1, 7)):
            tokens = root + rng.integers(3, 200, rng.integers(1, 60)).tolist()
            decision = Decision(b"never said", (1, 2), (5, 6, 7)) if rng.random() < 0.5 else None
            plan = Continuation(int(rng.integers(1, 12)), decision=decision) if rng.random() < 0.5 else None
            leaves.append(Leaf(tokens, plan))
    room = {"n_ctx": 4096, "n_batch": 64, "n_seq_max": 16, "n_threads": 1}
    unified, streams = (LlamaCpp(model, **room, kv_unified=kind).decode(leaves) for kind in (True, False))
    for leaf, a, b in zip(leaves, unified, streams, strict=True):
        assert (a.ended, len(a.tokens)) == (b.ended, len(b.tokens))
        if leaf.continuation is None:
            np.testing.assert_allclose(a.logits, b.logits, atol=2 * ROUNDING)


@pytest.mark.parametrize("n_gpu_layers", [0, -1])
def test_gpu_audit_5_a_gpu_has_streams_too(n_gpu_layers, model, monkeypatch):
    """A unified cache has attention visit the cells of all sequences. Without a GPU, llama.cpp ignores its layers."""
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: True)
    small = LlamaCpp(model, n_ctx=512, n_gpu_layers=n_gpu_layers)
    monkeypatch.setattr(context, "SMALL_MODEL", 0)
    large = LlamaCpp(model, n_ctx=512, n_gpu_layers=n_gpu_layers)
    assert (small.kv_unified, large.kv_unified) == (True, False)
