"""Which pseudo-labels are kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core.label_models import ChoiceVotes, agreement, keep_best


def test_agreement_by_hand():
    probs = [[0.9, 0.1, 0.9, 0.1], [0.8, 0.2, 0.2, 0.8], [0.6, 0.4, 0.3, 0.7], [0.6, 0.4, 0.6, 0.4]]
    votes = ChoiceVotes.from_probs(probs, [0, 2, 4], np.ones(4))
    np.testing.assert_allclose(agreement(votes, [0, 1]), [1.0, 0.5])
    # Every member counts alike, whatever its weight.
    two = ChoiceVotes.from_probs([[0.9, 0.1], [0.2, 0.8]], [0, 2], [3.0, 1.0])
    np.testing.assert_allclose(agreement(two, [0]), [0.5])
    with pytest.raises(ValueError, match="choice of question 1"):
        agreement(votes, [0, 2])


def test_share_and_threshold_by_hand():
    values = [0.2, 0.9, 0.5, 0.7]
    np.testing.assert_array_equal(keep_best(values, share=0.5), [False, True, False, True])
    np.testing.assert_array_equal(keep_best(values, share=0.51), [False, True, True, True])
    np.testing.assert_array_equal(keep_best(values, threshold=0.5), [False, True, True, True])
    assert not keep_best(values, threshold=0.95).any()
    # 0.07 * 100 is a little more than 7 in binary.
    assert keep_best(np.zeros(100), share=0.07).sum() == 7


def test_ties_go_by_the_second_value_then_by_id_not_by_place():
    values, then, ids = [1.0, 0.5, 0.5, 0.5], [0.0, 0.1, 0.9, 0.1], ["d", "b", "c", "a"]
    np.testing.assert_array_equal(keep_best(values, share=0.5, then=then), [True, False, True, False])
    kept = keep_best(values, share=0.75, then=then, ids=ids)
    order = [3, 1, 0, 2]
    again = keep_best(
        [values[i] for i in order], share=0.75, then=[then[i] for i in order], ids=[ids[i] for i in order]
    )
    np.testing.assert_array_equal(kept[order], again)
    np.testing.assert_array_equal(keep_best([0.5] * 4, share=0.5), [True, True, False, False])
    # Ids may themselves be in an order of difficulty: the hash of "a" begins with ca, that of "b" with 3e.
    np.testing.assert_array_equal(keep_best([0.5, 0.5], share=0.5, ids=["a", "b"]), [False, True])


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=20), st.floats(0.01, 1.0))
def test_nothing_kept_is_below_what_is_left_out(values, share):
    array = np.array(values)
    kept = keep_best(array, share=share)
    assert kept.sum() == min(len(values), math.ceil(round(share * len(values), 9))) >= 1
    assert kept.all() or array[kept].min() >= array[~kept].max()


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([0.5], {}, "exactly one"),
        ([0.5], {"share": 0.5, "threshold": 0.5}, "exactly one"),
        ([0.5], {"share": 0.0}, r"share must lie in \(0, 1\], got 0.0"),
        ([0.5], {"share": 1.5}, "share must lie"),
        ([0.5], {"threshold": math.nan}, "nan"),
        ([math.nan], {"share": 0.5}, "finite"),
        ([], {"share": 0.5}, "non-empty"),
        ([0.5], {"share": 0.5, "then": [1.0, 2.0]}, "then must be a vector of length 1"),
        ([0.5], {"share": 0.5, "ids": ["a", "b"]}, "one entry a sample"),
    ],
)
def test_refuses(values, options, message):
    with pytest.raises(ValueError, match=message):
        keep_best(values, **options)
