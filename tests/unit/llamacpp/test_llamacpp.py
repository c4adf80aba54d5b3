"""The batched llama.cpp decoder against llama_cpp.Llama and against itself, on tiny random models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.shared import SHARED
from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError
from tpo_lite.llamacpp import prefix_tree
from tpo_lite.llamacpp.decoder import Continuation, Decision, Leaf, LlamaCpp
from tpo_lite.llamacpp.schedule import Schedule

ROUNDING = 0.02
"""Largest logit difference that batching and a 16-bit KV cache explain; logits here have a spread of 1."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module", params=[True, False], ids=["unified", "streams"])
def kv_unified(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def engine(model: Path, kv_unified: bool) -> LlamaCpp:
    return LlamaCpp(model, n_ctx=4096, n_batch=128, n_seq_max=32, n_threads=1, kv_unified=kv_unified)


@pytest.fixture(scope="module")
def prompts(engine: LlamaCpp) -> list[list[int]]:
    """Three questions with four answers each: shared at two depths, one a prefix of another, two equal."""
    texts = [
        f"Which answer is better? Question {q}: what is {q} + {q}?\n{'The answer is ' * (a > 0)}{q + a}."
        for q in range(3)
        for a in range(4)
    ]
    texts += [texts[0], texts[0] + " And more."]
    return [[engine.bos, *engine.tokenize(text, special=False)] for text in texts]


@pytest.fixture(scope="module")
def reference(model: Path) -> llama_cpp.Llama:
    return llama_cpp.Llama(str(model), n_ctx=2048, n_threads=1, logits_all=True, flash_attn=True, verbose=False)


def reference_logits(reference: llama_cpp.Llama, tokens: list[int]) -> np.ndarray:
    reference.reset()
    reference.eval(tokens)
    return reference.scores[len(tokens) - 1].copy()


def assert_greedy(reference: llama_cpp.Llama, prompt: list[int], continuation: list[int]) -> None:
    """Each token has the highest logit, up to rounding."""
    reference.reset()
    reference.eval(prompt + continuation)
    for position, token in enumerate(continuation, len(prompt)):
        assert reference.scores[position - 1].max() - reference.scores[position - 1][token] < ROUNDING


def test_prefix_tree_shares_and_keeps_last_tokens():
    suffixes = prefix_tree.prefix_tree([Leaf([1, 2, 3]), Leaf([1, 2, 4]), Leaf([1, 2, 3])], max_depth=8, min_shared=1)

    assert [(s.leaf, s.tokens.tolist(), s.start) for s in suffixes] == [(0, [3], 2), (2, [3], 2), (1, [4], 2)]
    (prefix,) = {s.parent for s in suffixes}
    assert (prefix.tokens.tolist(), prefix.children, prefix.parent) == ([1, 2], 3, None)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=30), min_size=1, max_size=20),
    st.integers(1, 4),
    st.integers(1, 8),
)
def test_every_path_of_the_tree_is_its_leaf(sequences: list[list[int]], max_depth: int, min_shared: int):
    suffixes = prefix_tree.prefix_tree([Leaf(tokens) for tokens in sequences], max_depth, min_shared)

    assert sorted(s.leaf for s in suffixes) == list(range(len(sequences)))
    for suffix in suffixes:
        assert len(suffix.tokens) >= 1
        path, segment = [], suffix
        while segment is not None:
            path.insert(0, segment)
            segment = segment.parent
        assert sum((s.tokens.tolist() for s in path), []) == sequences[suffix.leaf]
        assert len(path) <= max_depth
        assert all(len(s.tokens) >= min_shared and s.children > 1 for s in path[:-1])


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


def test_control_tokens_are_parsed_only_on_request(engine):
    assert engine.detokenize(engine.tokenize("a<|eot_id|>", special=False)) == "a<|eot_id|>"
    (eot,) = engine.tokenize("<|eot_id|>", special=True)
    assert eot in engine.end_tokens()
    assert (engine.detokenize([eot]), engine.detokenize([eot], special=True)) == ("", "<|eot_id|>")


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


def test_a_leaf_longer_than_the_model_was_trained_for_is_refused(tmp_path):
    short = LlamaCpp(write_tiny_gguf(tmp_path / "short.gguf", n_ctx=64), n_ctx=512, n_threads=1)
    with pytest.raises(InputError, match="fit 64"):
        short.decode([Leaf([1] * 65)])


def test_unusable_files_say_what_to_do(tmp_path, model):
    with pytest.raises(InputError, match="no such file"):
        LlamaCpp(tmp_path / "none.gguf")
    text = tmp_path / "text.gguf"
    text.write_text("no model")
    with pytest.raises(InputError, match="not a GGUF file"):
        LlamaCpp(text)
    with pytest.raises(InputError, match="holds a vocabulary and no weights"):
        LlamaCpp(SHARED / "data/tokenizer/llama_cpp/ggml-vocab-llama-bpe.gguf")
    with pytest.raises(InputError, match="embedding model"):
        LlamaCpp(write_tiny_gguf(tmp_path / "embedding.gguf", embedding=True))


@pytest.mark.parametrize("share", [0.9, 0.01])
def test_a_file_cut_short_is_told(tmp_path, model, share):
    data = model.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match="cut short: download it again"):
        LlamaCpp(cut)


def test_settings_that_exclude_each_other(model, monkeypatch):
    with pytest.raises(InputError, match="needs flash attention"):
        LlamaCpp(model, kv_type="q8_0", flash_attn=False)
    monkeypatch.setattr(llama_cpp, "llama_supports_gpu_offload", lambda: False)
    with pytest.raises(InputError, match="built without GPU support"):
        LlamaCpp(model, n_gpu_layers=-1)


@pytest.mark.parametrize(
    ("n_ctx", "message"),
    [(1 << 22, "no context of 4194304 tokens"), (512, "There is not enough memory")],
    ids=["KV cache", "weights"],
)
def test_too_little_memory_is_an_input_error(tmp_path, n_ctx, message):
    wide = write_tiny_gguf(tmp_path / "wide.gguf", n_embd=512 if n_ctx == 512 else 64, n_layer=4)
    room = 10 << 20 if n_ctx == 512 else 1 << 30
    code = f"""
import resource
from tpo_lite.errors import InputError
from tpo_lite.llamacpp.decoder import LlamaCpp
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + {room},) * 2)
try:
    LlamaCpp({str(wide)!r}, n_ctx={n_ctx}, n_threads=1)
except InputError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert message in output


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
