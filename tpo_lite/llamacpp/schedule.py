"""Which tokens `tpo_lite.llamacpp.decoder.LlamaCpp` decodes when: continuous batches over the leaves' prefix tree.

A leaf or shared prefix is admitted when a llama.cpp sequence is free for it, and leaves give theirs up as soon as they
end. `Schedule` fills each decode with tokens of many sequences of one unified KV cache; `StreamSchedule`
serves a cache with a stream of cells for each sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp
import numpy as np

from tpo_lite.llamacpp.nucleus import nucleus_token
from tpo_lite.llamacpp.prefix_tree import Continuation, Decoded, Leaf, Segment, prefix_tree
from tpo_lite.seeds import generator

if TYPE_CHECKING:
    from tpo_lite.llamacpp.decoder import LlamaCpp

MIN_SHARED = 8
"""Tokens from which on a shared prefix is worth a sequence of its own, where it costs labels."""
MIN_COPIED = 32
"""The same where it costs a copy and a decode of its own."""
TOGETHER = 128
"""Prompt tokens up to which a decode in streams takes another sequence's: beyond it gains nothing on a CPU."""


class Schedule:
    """The state of one `LlamaCpp.decode` call on a unified cache of `cells` cells."""

    min_shared = MIN_SHARED

    def __init__(self, engine: LlamaCpp, leaves: Sequence[Leaf], sequences: int, cells: int):
        self.engine, self.leaves = engine, leaves
        self.memory = engine.memory
        self.waiting = deque(prefix_tree(leaves, sequences, self.min_shared))
        self.resident: list[Segment] = []
        """Segments in the KV cache, in the order of admission."""
        self.free_sequences = list(range(sequences))
        """In ascending order; leaves take the first, shared prefixes the last."""
        self.free_cells = cells
        self.ended: list[tuple[int, Decoded]] = []
        """What has ended in the last decode."""

    def run(self) -> Iterator[tuple[int, Decoded]]:
        """Each leaf's number and what became of it, as soon as it has ended."""
        llama_cpp.llama_memory_clear(self.memory, False)
        while self.waiting or self.resident:
            self._admit()
            completed = self.engine.decode_batch(self._next_batch())
            logits = self.engine.all_logits(sum(segment.leaf is not None for segment in completed))
            row = 0
            for segment in completed:
                if segment.leaf is None:
                    for child in self.resident:
                        if child.parent is segment:
                            self._copy_prefix(child)
                else:
                    self._advance(segment, logits[row])
                    row += 1
            yield from self.ended
            self.ended.clear()

    def _admit(self) -> None:
        """Takes waiting leaves, depth first, until a decode is full or room runs out.

        Depth-first order makes this free of deadlock: when no admitted leaf is left, all that is resident
        is shared prefixes of the next leaf, and `LlamaCpp.stream` has checked that one leaf fits alone.
        """
        pending = sum(len(s.tokens) - s.done for s in self.resident if s.ready)
        while self.waiting and pending < self.engine.n_batch:
            path = []
            segment: Segment | None = self.waiting[0]
            while segment is not None and segment.seq is None:
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
        llama_cpp.llama_memory_seq_cp(self.memory, segment.parent.seq, segment.seq, -1, -1)

    def _next_batch(self) -> list[tuple[Segment, int]]:
        """Segments and how many of their tokens the next decode takes."""
        # Continuations first: each needs one token, and n_batch has room for one of every sequence.
        ready = sorted((s for s in self.resident if s.ready), key=lambda s: not s.sampled)
        return self._fill(ready)

    def _fill(self, segments: Sequence[Segment]) -> list[tuple[Segment, int]]:
        """As many tokens of these, in order, as a decode takes."""
        batch, room = [], self.engine.n_batch
        for segment in segments:
            if room == 0:
                break
            take = min(len(segment.tokens) - segment.done, room)
            batch.append((segment, take))
            room -= take
        return batch

    def _advance(self, segment: Segment, logits: np.ndarray) -> None:
        """Takes the logits (vocabulary,) of a leaf's last token: ends the leaf or gives it the tokens that come next."""
        leaf = self.leaves[segment.leaf]
        plan = leaf.continuation
        if plan is None:
            return self._finish(segment, "prompt", _chosen(logits, leaf.logits_of))
        decision = plan.decision
        if segment.ended is not None:
            return self._finish(segment, segment.ended, _chosen(logits, decision.among))
        token = _next_token(segment, plan, logits)
        if decision is not None:
            if token in decision.among and segment.text.endswith(decision.after):
                return self._finish(segment, "decision", _chosen(logits, decision.among))
            segment.text += self.engine.token_bytes(token)
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

    def _finish(self, segment: Segment, ended: Any, logits: np.ndarray | None) -> None:
        self.ended.append((segment.leaf, Decoded(segment.sampled, ended, logits)))
        done: Segment | None = segment
        while done is not None and done.children == 0:
            self.free_cells += done.cells
            self.resident.remove(done)
            self._release(done)
            done = done.parent
            if done is not None:
                done.children -= 1

    def _release(self, segment: Segment) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, segment.seq, -1, -1)
        self.free_sequences.append(segment.seq)
        self.free_sequences.sort()


class StreamSchedule(Schedule):
    """The state of one `LlamaCpp.decode` call on a cache with a stream of cells for each sequence.

    llama.cpp decodes streams together where their numbers are consecutive and each has as many tokens; what sticks out is
    decoded apart. So prompts are not mixed with continuations, and continuations keep to the lowest numbers: where one
    ends and no leaf waits, the highest moves into its place.
    """

    min_shared = MIN_COPIED

    def _next_batch(self) -> list[tuple[Segment, int]]:
        ready = [s for s in self.resident if s.ready]
        prompts = [s for s in ready if not s.sampled]
        if not prompts:
            return self._fill(sorted(ready, key=lambda s: s.seq))
        batch, tokens = [], 0
        for segment in prompts:
            take = min(len(segment.tokens) - segment.done, self.engine.n_batch)
            if batch and tokens + take > min(TOGETHER, self.engine.n_batch):
                break
            batch.append((segment, take))
            tokens += take
        return sorted(batch, key=lambda part: part[0].seq)

    def _copy_prefix(self, segment: Segment) -> None:
        self.engine.copy_sequence(segment.parent.seq, segment.seq)

    def _release(self, segment: Segment) -> None:
        super()._release(segment)
        if segment.leaf is None or self.waiting:
            return
        last = max((s for s in self.resident if s.leaf is not None), key=lambda s: s.seq, default=segment)
        if last.seq > segment.seq:
            self.free_sequences.remove(segment.seq)
            self.engine.copy_sequence(last.seq, segment.seq)
            moved, last.seq = last.seq, segment.seq
            llama_cpp.llama_memory_seq_rm(self.memory, moved, -1, -1)
            self.free_sequences.append(moved)
            self.free_sequences.sort()


def _chosen(logits: np.ndarray, tokens: Sequence[int] | None) -> np.ndarray:
    return logits.copy() if tokens is None else logits[list(tokens)]


def _next_token(segment: Segment, plan: Continuation, logits: np.ndarray) -> int:
    if plan.temperature == 0:
        return int(logits.argmax())
    if segment.random is None:
        segment.random = generator(plan.seed)
    return nucleus_token(logits, segment.random.random(), plan.temperature, plan.top_p)
