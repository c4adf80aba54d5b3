"""Adapters: the fold is exact, a fresh block changes nothing, norms are those of the full update."""

import pytest
import torch

from tpo_lite.adapters import (
    Block,
    concatenate,
    difference,
    fresh_block,
    rank_of,
    read_adapter,
    squared_norms,
    write_adapter,
)
from tpo_lite.errors import TpoError

SHAPES = {"layers.0.q_proj": (6, 4), "layers.0.down_proj": (8, 6)}


def random_blocks(rank, seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Block(torch.randn(rank, inputs, generator=generator), torch.randn(outputs, rank, generator=generator))
        for name, (inputs, outputs) in SHAPES.items()
    }


def update(block):
    return block.b @ block.a


def test_concatenation_by_hand():
    one = {"q": Block(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0]]))}
    two = {"q": Block(torch.tensor([[5.0, 0.0]]), torch.tensor([[-1.0]]))}
    both = concatenate(one, two)["q"]
    assert both.a.tolist() == [[1.0, 2.0], [5.0, 0.0]]
    assert both.b.tolist() == [[3.0, -1.0]]
    assert update(both).tolist() == [[-2.0, 6.0]]


def test_the_fold_of_three_iterations_is_the_sum_of_their_updates():
    parts = [random_blocks(3, seed) for seed in range(3)]
    folded = concatenate(concatenate(parts[0], parts[1]), parts[2])
    assert rank_of(folded) == 9
    for name in SHAPES:
        torch.testing.assert_close(update(folded[name]), sum(update(part[name]) for part in parts))


def test_a_fresh_block_changes_nothing_and_depends_on_its_seed_alone():
    fresh = fresh_block(SHAPES, 3, "0/thinking/1")
    older = random_blocks(2, 0)
    for name in SHAPES:
        assert not fresh[name].b.any()
        assert fresh[name].a.abs().max() <= SHAPES[name][0] ** -0.5
        torch.testing.assert_close(update(concatenate(older, fresh)[name]), update(older[name]), rtol=0, atol=0)
        assert torch.equal(fresh[name].a, fresh_block(SHAPES, 3, "0/thinking/1")[name].a)
        assert not torch.equal(fresh[name].a, fresh_block(SHAPES, 3, "0/thinking/2")[name].a)


def test_norm_of_an_update_without_forming_it():
    blocks = random_blocks(3, 1)
    for name, squared in squared_norms(blocks, scale=2.0).items():
        assert squared == pytest.approx((2.0 * update(blocks[name])).square().sum().item(), rel=1e-5)


def test_difference_is_the_change_from_old_to_new():
    old, new = random_blocks(2, 0), random_blocks(3, 1)
    for name in SHAPES:
        torch.testing.assert_close(update(difference(new, old)[name]), update(new[name]) - update(old[name]))
    assert difference(new, None) is new


def test_an_adapter_folder_keeps_factors_and_scale(tmp_path):
    like = tmp_path / "like"
    like.mkdir()
    (like / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "bias": "none"}')
    blocks = random_blocks(3, 1)
    write_adapter(tmp_path / "adapter", blocks, 2.0, "base", like)
    read, scale = read_adapter(tmp_path / "adapter")
    assert scale == 2.0
    assert all(
        torch.equal(read[name].a, blocks[name].a) and torch.equal(read[name].b, blocks[name].b) for name in SHAPES
    )


def test_a_damaged_adapter_is_one_message(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"short")
    with pytest.raises(TpoError, match="cannot be read"):
        read_adapter(tmp_path)
