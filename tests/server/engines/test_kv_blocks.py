"""Blocks hold what was written to them, whoever joins, grows or leaves, and give their memory back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from covervlm.server.engines.embedded.kv_blocks import KVBlocks

SHAPES = [(2, 4, 3), (2, 4, 5)] * 2
"""Two layers, with values wider than keys."""


def layers(length, seed):
    make = torch.Generator().manual_seed(seed)
    sides = [torch.randn(1, heads, length, size, generator=make) for heads, _, size in SHAPES]
    return list(zip(sides[::2], sides[1::2], strict=True))


def cut(layers, length):
    return [tuple(side[:, :, :length] for side in layer) for layer in layers]


def same(one, other):
    return all(
        torch.equal(left, right) for a, b in zip(one, other, strict=True) for left, right in zip(a, b, strict=True)
    )


def write(blocks, row, layers, start):
    """What a pass does: the tokens from `start` on into the row's blocks."""
    sides = [side[0] for layer in layers for side in layer]
    for mine, theirs in zip(blocks.sides, sides, strict=True):
        for at in range(start, row.length):
            mine[row.blocks[at // 4], :, at % 4] = theirs[:, at]


ACTIONS = ("open", "write", "copy", "extend", "close")


@given(st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 30)), max_size=40))
def test_rows_keep_their_tokens_whatever_others_do(actions):
    blocks, kept = KVBlocks(SHAPES), []
    for number, (action, size) in enumerate(actions):
        one = kept[size % len(kept)] if kept else None
        match action:
            case "open":
                whole = layers(size + 9, number)
                kept.append((blocks.open(whole, size), cut(whole, size)))
            case "write":
                row, whole = blocks.open(), layers(size, number)
                blocks.extend(row, size)
                write(blocks, row, whole, 0)
                kept.append((row, whole))
            case "copy" if one:
                kept.append((blocks.copy(one[0]), one[1]))
            case "extend" if one:
                row, before = one
                start, more = row.length, layers(size, number)
                blocks.extend(row, size)
                whole = [
                    tuple(torch.cat(pair, 2) for pair in zip(a, b, strict=True))
                    for a, b in zip(before, more, strict=True)
                ]
                write(blocks, row, whole, start)
                kept[size % len(kept)] = row, whole
            case "close" if one:
                kept.remove(one)
                blocks.close([one[0]])
        assert all(same(blocks.layers(row), whole) for row, whole in kept)
        used = [block for row, _ in kept for block in row.blocks]
        assert len(set(used)) == len(used)


@pytest.mark.parametrize("left", [0, 1])
def test_memory_is_given_back_when_rows_leave(left):
    blocks = KVBlocks(SHAPES)
    least = blocks.nbytes
    rows = [blocks.open(layers(40, number), 40) for number in range(100)]
    most = blocks.nbytes
    assert most >= 1000 * least
    blocks.close(rows[left:])
    assert blocks.nbytes <= (2 * 10 * least if left else least)
    assert all(same(blocks.layers(row), cut(layers(40, number), 40)) for number, row in enumerate(rows[:left]))
    again = blocks.open(layers(7, 500), 7)
    assert same(blocks.layers(again), layers(7, 500))
