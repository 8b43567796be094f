"""Segments: where texts are cut when several tokenizers must agree, and what is summed over them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core.draws import draw_round
from ensemw2s.core.segments import Segments

# Two texts, of 6 and 3 bytes, cut after 2|4|6 and 1|3, and after 4|5|6 and 1|2|3.
LENGTHS = ([2, 2, 2, 1, 2], [4, 1, 1, 1, 1, 1])
OFFSETS = ([0, 3, 5], [0, 3, 6])

cuts = st.lists(st.integers(1, 5), min_size=1, max_size=8)


@st.composite
def readings(draw):
    """Several ways to cut the same texts: lengths by reader and text."""
    sizes = [sum(draw(cuts)) for _ in range(draw(st.integers(1, 5)))]
    readers = []
    for _ in range(draw(st.integers(1, 4))):
        own = []
        for size in sizes:
            inner = draw(st.sets(st.integers(1, size - 1))) if size > 1 else set()
            own.append(np.diff([0, *sorted(inner), size]))
        readers.append(own)
    return readers


def build(readers):
    return Segments.build(
        [np.concatenate(own) for own in readers],
        [np.cumsum([0, *(len(text) for text in own)]) for own in readers],
    )


def test_segments_by_hand():
    found = Segments.build(LENGTHS, OFFSETS)
    np.testing.assert_array_equal(found.ends, [4, 6, 7, 9])
    np.testing.assert_array_equal(found.offsets, [0, 2, 4])
    np.testing.assert_array_equal(found.starts[0], [0, 2, 3, 4, 5])
    np.testing.assert_array_equal(found.starts[1], [0, 1, 3, 4, 6])


def test_sums_and_hits_by_hand():
    found = Segments.build(LENGTHS, OFFSETS)
    np.testing.assert_array_equal(found.sums(0, [-1, -2, -4, -8, -16]), [-3, -4, -8, -16])
    np.testing.assert_array_equal(found.sums(1, [-1, -2, -4, -8, -16, -32]), [-1, -6, -8, -48])
    assert found.sums(0, np.zeros(5)).dtype == np.float32
    np.testing.assert_array_equal(found.all_of(0, [1, 0, 1, 1, 0]), [False, True, True, False])
    np.testing.assert_array_equal(found.all_of(1, [1, 1, 0, 1, 1, 1]), [True, False, True, True])


def test_a_draw_by_hand():
    """All four draws fell on the first segment of text 1; then a draw of everything."""
    found = Segments.build(LENGTHS, OFFSETS)
    draw = draw_round(1, "token_bootstrap", [0, 0, 1, 0], found.offsets, np.random.default_rng(0))
    own = found.draw_of(1, draw)
    np.testing.assert_array_equal(own.rows, [1])
    np.testing.assert_array_equal(own.loss_weights, [4, 0, 0])
    np.testing.assert_array_equal(own.denominators, [4])
    np.testing.assert_array_equal(own.out_of_bag, [1, 1, 1, 0, 1, 1])
    whole = found.draw_of(0, draw_round(0, "loss", np.ones(4), found.offsets, np.random.default_rng(0)))
    np.testing.assert_array_equal(whole.loss_weights, np.ones(5))
    np.testing.assert_array_equal(whole.denominators, [3, 2])
    np.testing.assert_array_equal(whole.row_offsets, OFFSETS[0])


@given(readings())
def test_segments_end_where_every_token_does(readers):
    found = build(readers)
    for own in readers:
        base, ends = 0, []
        for text in own:
            ends += (base + np.cumsum(text)).tolist()
            base += int(sum(text))
        assert set(found.ends.tolist()) <= set(ends)
    # No place where all readers end is missing.
    common = set.intersection(*(set(np.cumsum(np.concatenate(own)).tolist()) for own in readers))
    assert common == set(found.ends.tolist())
    assert len(found.offsets) == len(readers[0]) + 1
    for r, own in enumerate(readers):
        tokens = np.concatenate(own)
        np.testing.assert_array_equal(found.sums(r, tokens), np.diff(found.ends, prepend=0))


@given(readings(), st.sampled_from(["token_bootstrap", "sample_bootstrap", "loss"]), st.integers(0, 2))
def test_one_tokenizer_changes_nothing(readers, method, turn):
    alike = build([readers[0]] * len(readers))
    tokens = np.concatenate(readers[0])
    rng = np.random.default_rng(5)
    values = rng.normal(size=tokens.size).astype(np.float32)
    draw = draw_round(turn, method, rng.random(tokens.size) + 0.1, alike.offsets, rng)
    for r in range(len(readers)):
        np.testing.assert_array_equal(alike.sums(r, values), values)
        own = alike.draw_of(r, draw)
        for name in ("rows", "row_offsets", "loss_weights", "denominators", "out_of_bag"):
            np.testing.assert_array_equal(getattr(own, name), getattr(draw, name))


@given(readings(), st.integers(1, 2))
def test_each_token_has_the_whole_weight_of_its_segment(readers, turn):
    found = build(readers)
    n = len(found.ends)
    weights = np.random.default_rng(7).random(n) + 0.1
    draw = draw_round(turn, "loss", weights, found.offsets, np.random.default_rng(7))
    for r in range(len(readers)):
        own = found.draw_of(r, draw)
        np.testing.assert_allclose(own.loss_weights, np.repeat(draw.loss_weights, np.diff(found.starts[r])))
        assert own.row_offsets[-1] == len(own.loss_weights)
        # Per unit of weight the loss is normalized by as much as before.
        np.testing.assert_allclose(
            own.denominators / np.add.reduceat(own.loss_weights, own.row_offsets[:-1], dtype=np.float64),
            draw.denominators / np.add.reduceat(draw.loss_weights, draw.row_offsets[:-1], dtype=np.float64),
        )


def test_what_cannot_be_cut():
    with pytest.raises(ValueError, match="same bytes"):
        Segments.build(([2, 1], [1, 1]), ([0, 2], [0, 2]))
    with pytest.raises(ValueError, match="same bytes"):
        Segments.build(([2, 1], [1, 2]), ([0, 1, 2], [0, 1, 2]))
    with pytest.raises(ValueError, match="at least 1"):
        Segments.build(([2, 0],), ([0, 2],))
    with pytest.raises(ValueError, match="readers"):
        Segments.build((), ())
    with pytest.raises(ValueError, match="5 tokens"):
        Segments.build(LENGTHS, OFFSETS).sums(0, np.zeros(6))
