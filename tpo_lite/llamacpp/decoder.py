"""A batched llama.cpp decoder for token sequences that share prefixes.

`LlamaCpp.decode` takes leaves (whole token sequences), builds the tree of the prefixes that they share
(`tpo_lite.llamacpp.prefix_tree`), decodes each shared prefix once, copies it between sequences, and lets the suffixes
and continuations of many leaves share each decode (`tpo_lite.llamacpp.schedule`). Works on token ids; knows nothing of
judges.

On one machine, the same leaves in the same order with the same settings give bit-identical results: the schedule
depends on the leaves alone, and every call starts with an empty cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tpo_lite.errors import InputError
from tpo_lite.llamacpp.context import LlamaContext
from tpo_lite.llamacpp.leaves import Decoded, Leaf, whole_cells
from tpo_lite.llamacpp.schedule import Schedule, StreamSchedule


class LlamaCpp(LlamaContext):
    """A GGUF model that decodes many sequences at a time; `LlamaContext` describes the arguments.

    A leaf takes one sequence, and so does each shared prefix above it. In streams, there are as many sequences as have
    room for the longest leaf each, at most `n_seq_max`.
    """

    def decode(self, leaves: Sequence[Leaf]) -> list[Decoded]:
        """Return what becomes of all leaves, in the order given; see `stream`."""
        ended = dict(self.stream(leaves))
        return [ended[index] for index in range(len(leaves))]

    def stream(self, leaves: Sequence[Leaf]) -> Iterator[tuple[int, Decoded]]:
        """Decode all leaves, and yield each leaf's number and what became of it as soon as it has ended.

        Only one stream may be open at a time, because each begins with an empty cache. A leaf enters when a sequence
        and all the KV cells that it can need are free, so nothing ever has to be evicted. Raises `InputError` naming a
        leaf that does not fit even alone, before any work is done.
        """
        for index, leaf in enumerate(leaves):
            if not leaf.tokens or leaf.room > self.max_leaf:
                raise InputError(
                    f"Leaf {index} needs {leaf.room} tokens ({len(leaf.tokens)} given); it must have at least one and "
                    f"fit {self.max_leaf}. Shorten it, or use a larger context."
                )
        if self.kv_unified:
            schedule = Schedule(self, leaves, self.n_seq_max, self.n_ctx)
        else:
            longest = max((leaf.room for leaf in leaves), default=1)
            sequences = max(1, min(self.n_seq_max, self.n_ctx // whole_cells(longest)))
            self.use_streams(sequences)
            schedule = StreamSchedule(self, leaves, sequences, sum(leaf.room for leaf in leaves))
        yield from schedule.run()
