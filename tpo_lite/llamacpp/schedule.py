"""Which tokens are decoded when: continuous batching over the leaves' prefix tree.

A leaf or shared prefix is admitted when a llama.cpp sequence is free for it. A leaf frees its sequence as soon as it
ends. `Schedule` fills each decode with tokens of many sequences of one unified KV cache; `StreamSchedule` is for a
cache with a stream of cells for each sequence (`tpo_lite.llamacpp.context` compares the two).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import llama_cpp
import numpy as np

from tpo_lite.insertion import Insertions
from tpo_lite.llamacpp.context import LlamaContext
from tpo_lite.llamacpp.leaves import Continuation, Decoded, Ended, Leaf
from tpo_lite.llamacpp.nucleus import nucleus_token
from tpo_lite.llamacpp.prefix_tree import Segment, prefix_tree
from tpo_lite.seeds import generator

MIN_SHARED = 8
"""The fewest tokens for which a shared prefix gets its own sequence, in a unified cache, where copies are labels."""
MIN_COPIED = 32
"""The same in streams, where a shared prefix costs a decode and copies of cells."""
TOGETHER = 128
"""In streams, prompts share a decode while they have at most this many tokens: more gains nothing on a CPU."""


class Schedule:
    """The state of one `LlamaCpp.stream` call on a unified cache of `cells` cells."""

    min_shared = MIN_SHARED

    def __init__(self, context: LlamaContext, leaves: Sequence[Leaf], sequences: int, cells: int):
        self.context = context
        self.leaves: Sequence[Leaf] | dict[int, Leaf] = leaves
        """By their numbers."""
        self.memory = context.memory
        self.waiting = deque(prefix_tree(leaves, sequences, self.min_shared))
        self.resident: list[Segment] = []
        """Segments in the KV cache, in the order of admission."""
        self.free_sequences = list(range(sequences))
        """In ascending order; leaves take the first, shared prefixes the last."""
        self.free_cells = cells
        self.ended: list[tuple[int, Decoded]] = []
        """The leaves that ended with the last decode, and what became of them."""

    def run(self) -> Iterator[tuple[int, Decoded]]:
        """Yield each leaf's number and what became of it, as soon as it has ended."""
        llama_cpp.llama_memory_clear(self.memory, False)
        while self.waiting or self.resident:
            self.step()
            yield from self.ended
            self.ended.clear()

    def step(self) -> None:
        """Admit what there is room for, and decode once; `ended` then has the leaves that this ends."""
        self._admit()
        completed = self.context.decode_batch(self._next_batch())
        logits = self.context.all_logits(sum(segment.leaf is not None for segment in completed))
        row = 0
        for segment in completed:
            if segment.leaf is None:
                for child in self.resident:
                    if child.parent is segment:
                        self._copy_prefix(child)
            else:
                self._advance(segment, logits[row])
                row += 1

    def _admit(self) -> None:
        """Admit waiting leaves, depth first, until a decode is full or room runs out.

        Depth-first order prevents deadlock: when no admitted leaf is left, only shared prefixes of the next leaf are
        resident, and `LlamaCpp.stream` has checked that each leaf fits alone.
        """
        pending = sum(len(s.tokens) - s.done for s in self.resident if s.ready)
        while self.waiting and pending < self.context.n_batch:
            path = []
            segment: Segment | None = self.waiting[0]
            while segment is not None and segment.seq < 0:
                path.append(segment)
                segment = segment.parent
            cells = sum(s.cells for s in path)
            if len(path) > len(self.free_sequences) or cells > self.free_cells:
                return
            self.waiting.popleft()
            self.free_cells -= cells
            for segment in reversed(path):
                segment.seq = self.free_sequences.pop(-1 if segment.leaf is None else 0)
                self.resident.append(segment)
                if segment.parent is not None and segment.parent.complete:
                    self._copy_prefix(segment)
                if segment.ready:
                    pending += len(segment.tokens)

    def _copy_prefix(self, segment: Segment) -> None:
        """Copy the shared prefix before a segment, once it is complete, to the segment's sequence."""
        assert segment.parent is not None
        llama_cpp.llama_memory_seq_cp(self.memory, segment.parent.seq, segment.seq, -1, -1)

    def _next_batch(self) -> list[tuple[Segment, int]]:
        """Return what the next decode takes: segments, and how many tokens of each."""
        # Continuations first: each needs one token, and n_batch has room for one of every sequence.
        ready = sorted((s for s in self.resident if s.ready), key=lambda s: not s.sampled)
        return self._fill(ready)

    def _fill(self, segments: Sequence[Segment]) -> list[tuple[Segment, int]]:
        """Return as many tokens of these segments, in order, as a decode takes."""
        batch: list[tuple[Segment, int]] = []
        room = self.context.n_batch
        for segment in segments:
            if room == 0:
                break
            take = min(len(segment.tokens) - segment.done, room)
            batch.append((segment, take))
            room -= take
        return batch

    def _advance(self, segment: Segment, logits: np.ndarray) -> None:
        """End a leaf, or give it the tokens that come next, by the logits (vocabulary,) after its last token."""
        assert segment.leaf is not None
        leaf = self.leaves[segment.leaf]
        plan = leaf.continuation
        if plan is None:
            return self._finish(segment, "prompt", _chosen(logits, leaf.logits_of))
        decision = plan.decision
        if segment.ended is not None:
            assert decision is not None  # only its forced tokens are decoded after the end
            return self._finish(segment, segment.ended, _chosen(logits, decision.among))
        token = _next_token(segment, plan, logits)
        if decision is not None:
            if token in decision.among and segment.text.endswith(decision.after):
                return self._finish(segment, "decision", _chosen(logits, decision.among))
            segment.text += self.context.token_bytes(token)
        segment.sampled.append(token)
        following = [] if token in plan.stop_tokens else [token]
        if not following:
            segment.ended = "stop"
        elif len(segment.sampled) == plan.max_tokens:
            segment.ended = "length"
        if segment.ended is None:
            return segment.follow_with(following)
        if decision is None:
            return self._finish(segment, segment.ended, None)
        following += decision.force
        if following:
            return segment.follow_with(following)
        self._finish(segment, segment.ended, _chosen(logits, decision.among))

    def _finish(self, segment: Segment, ended: Ended, logits: np.ndarray | None) -> None:
        """Record what became of a leaf, and let it leave."""
        assert segment.leaf is not None
        self.ended.append((segment.leaf, Decoded(segment.sampled, ended, logits)))
        self._leave(segment)

    def _leave(self, segment: Segment) -> None:
        """Free a leaf's sequence and the shared prefixes that no other leaf needs."""
        done: Segment | None = segment
        while done is not None and done.children == 0:
            self.free_cells += done.cells
            self.resident.remove(done)
            self._release(done)
            done = done.parent
            if done is not None:
                done.children -= 1

    def _release(self, segment: Segment) -> None:
        """Empty a segment's sequence and free it."""
        llama_cpp.llama_memory_seq_rm(self.memory, segment.seq, -1, -1)
        self.free_sequences.append(segment.seq)
        self.free_sequences.sort()


class StreamSchedule(Schedule):
    """The state of one `LlamaCpp.stream` call on a cache with a stream of cells for each sequence.

    llama.cpp decodes streams together only if their numbers are consecutive and they have equally many tokens. The
    other tokens are decoded separately. So prompts are not mixed with continuations, and continuations use the lowest
    numbers: if one ends and no leaf waits, the one with the highest number moves into its place.
    """

    min_shared = MIN_COPIED

    def _next_batch(self) -> list[tuple[Segment, int]]:
        ready = [s for s in self.resident if s.ready]
        prompts = [s for s in ready if not s.sampled]
        if not prompts:
            return self._fill(sorted(ready, key=lambda s: s.seq))
        batch: list[tuple[Segment, int]] = []
        tokens = 0
        for segment in prompts:
            take = min(len(segment.tokens) - segment.done, self.context.n_batch)
            if batch and tokens + take > min(TOGETHER, self.context.n_batch):
                break
            batch.append((segment, take))
            tokens += take
        return sorted(batch, key=lambda part: part[0].seq)

    def _copy_prefix(self, segment: Segment) -> None:
        assert segment.parent is not None
        self.context.copy_sequence(segment.parent.seq, segment.seq)

    def _release(self, segment: Segment) -> None:
        super()._release(segment)
        if segment.leaf is None or self.waiting:
            return
        last = max((s for s in self.resident if s.leaf is not None), key=lambda s: s.seq, default=segment)
        if last.seq > segment.seq:
            self.free_sequences.remove(segment.seq)
            self.context.copy_sequence(last.seq, segment.seq)
            moved, last.seq = last.seq, segment.seq
            llama_cpp.llama_memory_seq_rm(self.memory, moved, -1, -1)
            self.free_sequences.append(moved)
            self.free_sequences.sort()


def _chosen(logits: np.ndarray, tokens: Sequence[int] | None) -> np.ndarray:
    """Return the logits of `tokens` (None: of all), copied out of llama.cpp's memory."""
    return logits.copy() if tokens is None else logits[list(tokens)]


def _next_token(segment: Segment, plan: Continuation, logits: np.ndarray) -> int:
    """Return the next token of a continuation: the most likely one, a random one of the nucleus, or one put in."""
    assert segment.leaf is not None
    if segment.insertions is None:
        segment.insertions = Insertions(plan.insertion, segment.leaf, plan.stop_tokens)
    if plan.temperature == 0:
        token = int(logits.argmax())
    else:
        if segment.random is None:
            segment.random = generator(plan.seed)
        token = nucleus_token(logits, segment.random.random(), plan.temperature, plan.top_p)
    return segment.insertions.next_token(segment.sampled, token)
