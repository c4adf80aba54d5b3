"""Rows that join and leave while others are decoded come to what they would come to alone."""

from __future__ import annotations

import string

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from tpo_lite.errors import InputError
from tpo_lite.insertion import Insertion
from tpo_lite.llamacpp.context import LlamaContext
from tpo_lite.llamacpp.decoder import LlamaCpp
from tpo_lite.llamacpp.leaves import Continuation, Leaf
from tpo_lite.llamacpp.live import LiveSchedule

CHAIN = string.ascii_uppercase


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A model that says the next letter after each, whatever is rounded: 4 sequences, batches of 16 tokens."""
    file = write_tiny_gguf(tmp_path_factory.mktemp("gguf") / "chain.gguf", script=(*CHAIN, CHAIN[0]))
    return LlamaContext(file, n_ctx=512, n_batch=16, n_seq_max=4, n_threads=1, kv_unified=True)


def leaf(context, start, length, before=0, **more):
    """`before` tokens, then a letter; it is continued with the `length` letters after it."""
    return Leaf(context.tokenize("." * before + CHAIN[start], special=False), Continuation(length, **more))


def said(context, start, length):
    return context.tokenize((CHAIN * 20)[start + 1 :][:length], special=False)


def run(schedule, rows, outputs):
    """Advance until none of `rows` is left."""
    ended = {}
    while rows - ended.keys():
        for row, tokens, why in schedule.advance():
            outputs.setdefault(row, []).extend(tokens)
            if why is not None:
                ended[row] = why
    return ended


def test_one_row_comes_to_what_the_decoder_makes_of_it(model):
    """The same decodes in the same order: sampled tokens are equal, to the last."""
    settings = {"n_ctx": 512, "n_batch": 16, "n_seq_max": 4, "n_threads": 1, "kv_unified": True}
    plan = Continuation(40, temperature=1.0, top_p=0.9, seed=7)
    decoder = LlamaCpp(model, **settings)
    tokens = decoder.tokenize("Which answer is better? What is 1 + 1?", special=False)
    (expected,) = decoder.decode([Leaf(tokens, plan)])
    schedule, outputs = LiveSchedule(LlamaContext(model, **settings)), {}
    schedule.add(3, Leaf(tokens, plan))
    assert run(schedule, {3}, outputs) == {3: expected.ended}
    assert outputs == {3: expected.tokens}


def test_rows_join_while_others_go_on(chain):
    schedule, outputs, ended = LiveSchedule(chain), {}, {}
    lengths = [5, 30, 9, 17, 2, 21, 13, 1]
    for row, length in enumerate(lengths):
        schedule.add(row, leaf(chain, row, length, before=7 * row))
        for advanced in [schedule.advance(), schedule.advance()]:
            for number, tokens, why in advanced:
                outputs.setdefault(number, []).extend(tokens)
                ended |= {number: why} if why else {}
    ended |= run(schedule, set(range(8)) - ended.keys(), outputs)
    assert outputs == {row: said(chain, row, length) for row, length in enumerate(lengths)}
    assert set(ended.values()) == {"length"}


def test_tokens_come_one_by_one(chain):
    schedule = LiveSchedule(chain)
    schedule.add(0, leaf(chain, 0, 4))
    assert [schedule.advance() for _ in range(4)] == [
        [(0, said(chain, at, 1), "length" if at == 3 else None)] for at in range(4)
    ]


def test_a_row_that_leaves_makes_room(chain):
    """Of three rows, each with most of the cells, one is decoded and two wait; the first two leave."""
    schedule, outputs = LiveSchedule(chain), {}
    for row in range(3):
        schedule.add(row, leaf(chain, row, 400))
    for _ in range(3):
        schedule.advance()
    schedule.remove(1)
    schedule.remove(0)
    assert run(schedule, {2}, outputs) == {2: "length"}
    assert outputs == {2: said(chain, 2, 400)}
    schedule.add(1, leaf(chain, 1, 400))  # the number of one that has left
    run(schedule, {1}, outputs)
    assert outputs[1] == said(chain, 1, 400)


def test_tokens_are_put_in_and_stops_end_a_row(chain):
    schedule, outputs = LiveSchedule(chain), {}
    (x, m) = chain.tokenize("XM", special=False)
    insertion = Insertion(2, lambda row, output: [x])
    schedule.add(0, leaf(chain, 0, 20, insertion=insertion, stop_tokens=frozenset([m])))
    assert run(schedule, {0}, outputs) == {0: "stop"}
    assert chain.detokenize(outputs[0]) == "BCXYZABCDEFGHIJKLM"


def test_what_does_not_fit_alone_is_refused(chain):
    schedule = LiveSchedule(chain)
    with pytest.raises(InputError, match="1 tokens of prompt and 512 of reply do not fit the context of 512 tokens"):
        schedule.add(0, leaf(chain, 0, 512))
    with pytest.raises(InputError, match="0 tokens of prompt"):
        schedule.add(0, Leaf([], Continuation(1)))
    schedule.add(0, leaf(chain, 0, 511))
    run(schedule, {0}, {})
