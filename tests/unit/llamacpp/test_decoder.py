"""The batched llama.cpp decoder against llama_cpp.Llama and against itself, on tiny random models."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.reference import ROUNDING, assert_greedy, reference_logits
from tpo_lite.errors import InputError
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Continuation, Decision, Leaf
from tpo_lite.llamacpp.schedule import Schedule


def test_batched_logits_are_those_of_one_sequence_at_a_time(engine, prompts, reference):
    decoded = engine.decode([Leaf(tokens) for tokens in prompts])

    for tokens, result in zip(prompts, decoded, strict=True):
        assert (result.tokens, result.ended) == ([], "prompt")
        np.testing.assert_allclose(result.logits, reference_logits(reference, tokens), atol=ROUNDING)


def test_chosen_logits_are_rows_of_all(engine, prompts):
    whole = engine.decode([Leaf(tokens) for tokens in prompts])
    some = engine.decode([Leaf(tokens, logits_of=(70, 3)) for tokens in prompts])

    for a, b in zip(whole, some, strict=True):
        assert a.logits[[70, 3]].tolist() == b.logits.tolist()


def test_shared_prefixes_are_decoded_once(engine):
    prefix = list(range(50))
    leaves = [Leaf(prefix + [100 + a] * 40 + [200 + b, 7]) for a in range(4) for b in range(5)]
    before = engine.tokens_decoded
    engine.decode(leaves)

    assert engine.tokens_decoded - before == 50 + 4 * 40 + 20 * 2


def test_greedy_continuation_is_that_of_llama_cpp(engine, prompts, reference):
    decoded = engine.decode([Leaf(tokens, Continuation(12)) for tokens in prompts])

    same = 0
    for tokens, result in zip(prompts, decoded, strict=True):
        assert (len(result.tokens), result.ended, result.logits) == (12, "length", None)
        assert_greedy(reference, tokens, result.tokens)
        reference.reset()
        stream = reference.generate(tokens, temp=0.0, repeat_penalty=1.0)
        same += result.tokens == [next(stream) for _ in range(12)]
    assert same >= 11  # of 14; a near tie may fall either way


def test_samples_follow_temperature_and_nucleus(engine, prompts):
    temperature, top_p, n = 0.7, 0.6, 600
    logits = engine.decode([Leaf(prompts[0])])[0].logits.astype(float)
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    nucleus = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]

    plans = [Continuation(1, temperature, top_p, seed=seed) for seed in range(n)]
    tokens = [result.tokens[0] for result in engine.decode([Leaf(prompts[0], plan) for plan in plans])]

    assert set(tokens) <= set(nucleus.tolist())
    frequency = np.bincount(tokens, minlength=engine.n_vocab) / n
    expected = np.zeros(engine.n_vocab)
    expected[nucleus] = p[nucleus] / p[nucleus].sum()
    # Half the L1 distance between n draws and their distribution is below sqrt(support / 4n) on average.
    assert np.abs(frequency - expected).sum() / 2 < 2 * (len(nucleus) / (4 * n)) ** 0.5


def test_a_sample_depends_on_its_own_seed_only(engine, prompts):
    def sample(seeds: list[int]) -> list[list[int]]:
        leaves = [Leaf(prompts[0], Continuation(16, temperature=1.0, seed=seed)) for seed in seeds]
        return [result.tokens for result in engine.decode(leaves)]

    first = sample([1, 2, 3])
    assert first == sample([1, 2, 3])
    assert first[0] != first[1] != first[2]
    assert sample([1, 8, 9])[0] == first[0]


def test_results_are_bit_identical_from_run_to_run(model, kv_unified, prompts):
    def run(engine: LlamaCpp) -> list[tuple[list[int], bytes]]:
        plan = Continuation(4, temperature=1.0, seed=3, decision=Decision(b"\x00\x00", (1, 2), (5, 6)))
        return [(r.tokens, r.logits.tobytes()) for r in engine.decode([Leaf(t, plan) for t in prompts[:6]])]

    settings = {"n_ctx": 1024, "n_batch": 64, "n_seq_max": 8, "n_threads": 1, "kv_unified": kv_unified}
    engines = [LlamaCpp(model, **settings) for _ in range(2)]
    first = run(engines[0])
    assert run(engines[0]) == first
    assert run(engines[1]) == first


def test_stop_token_ends_a_continuation_and_belongs_to_it(engine, prompts):
    unstopped = Leaf(prompts[1], Continuation(12))
    greedy, _ = engine.decode([unstopped, unstopped])
    stop = greedy.tokens[4]
    end = greedy.tokens.index(stop) + 1
    stopped, other = engine.decode([Leaf(prompts[1], Continuation(12, stop_tokens=frozenset({stop}))), unstopped])

    assert (stopped.tokens, stopped.ended) == (greedy.tokens[:end], "stop")
    assert len(other.tokens) == 12
    assert other.tokens[:end] == greedy.tokens[:end]


def test_decision_reads_the_logits_where_it_is_made(engine, prompts):
    (greedy,) = engine.decode([Leaf(prompts[2], Continuation(12))])
    chosen = greedy.tokens[6]
    decision = Decision(engine.token_bytes(greedy.tokens[5]), (chosen, 99), force=(1,))
    (decided,) = engine.decode([Leaf(prompts[2], Continuation(12, decision=decision))])

    assert decided.ended == "decision"
    assert decided.tokens == greedy.tokens[: len(decided.tokens)]
    (expected,) = engine.decode([Leaf(prompts[2] + decided.tokens, logits_of=(chosen, 99))])
    np.testing.assert_allclose(decided.logits, expected.logits, atol=ROUNDING)
    assert decided.logits[0] > decided.logits[1]


@pytest.mark.parametrize("end", ["length", "stop"])
def test_decision_is_forced_where_none_is_made(engine, prompts, end):
    (greedy,) = engine.decode([Leaf(prompts[3], Continuation(5))])
    stop_tokens = frozenset(greedy.tokens[-1:]) if end == "stop" else frozenset()
    decision = Decision(b"never said", (65, 66), force=(40, 41))
    (forced,) = engine.decode([Leaf(prompts[3], Continuation(5, stop_tokens=stop_tokens, decision=decision))])

    assert forced.ended == end
    said = forced.tokens[:-1] if end == "stop" else forced.tokens
    (expected,) = engine.decode([Leaf([*prompts[3], *said, 40, 41], logits_of=(65, 66))])
    np.testing.assert_allclose(forced.logits, expected.logits, atol=ROUNDING)


@pytest.mark.parametrize(
    ("n_ctx", "n_batch", "n_seq_max"),
    [(512, 128, 2), (512, 128, 3), (140, 16, 32), (512, 5, 32), (140, 3, 1)],
)
def test_what_does_not_fit_is_split(model, engine, kv_unified, prompts, reference, n_ctx, n_batch, n_seq_max):
    leaves = [Leaf(tokens, Continuation(10)) for tokens in prompts] + [Leaf(tokens) for tokens in prompts]
    room = {"n_ctx": n_ctx, "n_batch": n_batch, "n_seq_max": n_seq_max}
    tight = LlamaCpp(model, **room, n_threads=1, kv_unified=kv_unified)
    assert sum(leaf.room for leaf in leaves) > 3 * n_ctx

    for roomy_result, tight_result in zip(engine.decode(leaves), tight.decode(leaves), strict=True):
        if tight_result.ended == "prompt":
            np.testing.assert_allclose(roomy_result.logits, tight_result.logits, atol=ROUNDING)
    for tokens, result in zip(prompts, tight.decode(leaves[: len(prompts)]), strict=True):
        assert len(result.tokens) == 10
        assert_greedy(reference, tokens, result.tokens)


def test_cells_in_use_never_exceed_the_context(model, prompts, monkeypatch):
    tight = LlamaCpp(model, n_ctx=160, n_batch=32, n_seq_max=8, n_threads=1)
    least = []
    admit = Schedule._admit
    monkeypatch.setattr(Schedule, "_admit", lambda self: (admit(self), least.append(self.free_cells)))
    tight.decode([Leaf(tokens, Continuation(10)) for tokens in prompts])

    assert 0 <= min(least) < 60


def test_a_finished_place_is_taken_at_once(model, kv_unified, prompts):
    tight = LlamaCpp(model, n_ctx=2048, n_batch=64, n_seq_max=3, n_threads=1, kv_unified=kv_unified)
    decodes = 0
    decode_batch = tight.decode_batch

    def counting(parts: list) -> list:
        nonlocal decodes
        decodes += 1
        return decode_batch(parts)

    tight.decode_batch = counting
    # Two of the three sequences are free for leaves: 41 and four times 10 tokens, side by side.
    lengths = [41, 10, 10, 10, 10]
    tight.decode([Leaf(prompts[0], Continuation(length)) for length in lengths])

    assert decodes <= 41 + 6


def test_q8_0_cache_is_close_to_f16(model, engine, kv_unified, prompts):
    small = LlamaCpp(model, n_ctx=2048, kv_type="q8_0", n_threads=1, kv_unified=kv_unified)
    leaves = [Leaf(tokens) for tokens in prompts]
    for a, b in zip(engine.decode(leaves), small.decode(leaves), strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=0.2)


def test_a_leaf_that_does_not_fit_alone_is_named(engine, model):
    before = engine.tokens_decoded
    with pytest.raises(InputError, match="Leaf 1 needs 4200 tokens .*4096"):
        engine.decode([Leaf([1, 2]), Leaf([1] * 4000, Continuation(200))])
    for numbers in ({"max_tokens": 0}, {"temperature": -0.1}, {"top_p": 0}, {"seed": -1}, {"seed": 1 << 128}):
        with pytest.raises(ValueError, match="a number is out of its range"):
            Continuation(**{"max_tokens": 1} | numbers)
    with pytest.raises(InputError, match="Leaf 0 "):
        engine.decode([Leaf([])])
    assert engine.tokens_decoded == before
