"""The tree of shared prefixes: what is decoded once, and that every path of it is its leaf."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tpo_lite.llamacpp import prefix_tree
from tpo_lite.llamacpp.leaves import Leaf


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
