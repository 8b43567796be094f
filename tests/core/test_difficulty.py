"""Ratings of difficulty: folds without leaks, disagreement, and the split by quantile."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.config import SplitConfig
from ensemw2s.core.difficulty import (
    FoldScores,
    assign_folds,
    check_out_of_fold,
    disagreement_rating,
    easy_hard_split,
    out_of_fold_rating,
)
from ensemw2s.core.label_models import ChoiceVotes
from ensemw2s.data.samples import Sample
from ensemw2s.data.splits import divide_pool
from ensemw2s.errors import DataError

IDS = [f"q{i}" for i in range(20)]


class TestFolds:
    @given(st.permutations(IDS), st.integers(2, 7), st.integers(0, 5))
    def test_folds_depend_on_ids_not_on_their_order(self, shuffled, n_folds, seed):
        fold = dict(zip(IDS, assign_folds(IDS, n_folds, seed=seed).tolist(), strict=True))
        again = dict(zip(shuffled, assign_folds(shuffled, n_folds, seed=seed).tolist(), strict=True))
        assert fold == again
        sizes = np.bincount(list(fold.values()), minlength=n_folds)
        assert sizes.min() >= sizes.max() - 1 >= 1

    def test_seeds_give_other_folds(self):
        assert (assign_folds(IDS, 4, seed=0) != assign_folds(IDS, 4, seed=1)).any()

    def test_a_group_is_never_divided(self):
        groups = [f"g{i % 7}" for i in range(20)]
        folds = assign_folds(IDS, 3, groups=groups)
        for name in set(groups):
            assert len({int(f) for f, g in zip(folds, groups, strict=True) if g == name}) == 1

    @pytest.mark.parametrize(
        ("ids", "n_folds", "groups", "message"),
        [
            (["a", "b", "a"], 2, None, "'a' stands there twice"),
            ([], 2, None, "not be empty"),
            (["a", "b"], 1, None, "from 2 to the number of groups, 2, got 1"),
            (["a", "b"], 3, None, "got 3"),
            (["a", "b"], 2, ["g", "g"], "the number of groups, 1, got 2"),
            (["a", "b"], 2, ["g"], "one key a sample"),
        ],
    )
    def test_refuses(self, ids, n_folds, groups, message):
        with pytest.raises(ValueError, match=message):
            assign_folds(ids, n_folds, groups=groups)


def part(fold: int, trained_on: str, ids: str, confidence: object) -> FoldScores:
    return FoldScores(fold, frozenset(trained_on), tuple(ids), np.array(confidence))


class TestOutOfFold:
    def test_rating_by_hand(self):
        parts = [part(0, "cd", "ba", [0.9, 0.2]), part(1, "ab", "cd", [[0.5, 1.0], [0.7, 0.0]])]
        np.testing.assert_allclose(out_of_fold_rating(list("abcd"), parts), [0.8, 0.1, 0.4, 0.5])

    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([part(0, "bcd", "ab", [0.5, 0.5])], "leak: .* fold 0 were trained on 1 .* 'b'"),
            (
                [part(0, "cd", "ab", [0.5, 0.5]), part(1, "cd", "a", [0.5])],
                "'a' is rated by fold 0 and by fold 1",
            ),
            ([part(0, "cd", "ab", [0.5, 0.5])], "2 of 4 samples are rated by no fold, such as 'c'"),
            ([part(0, "cd", "abx", [0.5] * 3)], "unknown samples, such as 'x'"),
            (
                [part(0, "cdx", "ab", [0.5, 0.5]), part(1, "ab", "cd", [0.5, 0.5])],
                "unknown samples, such as 'x'",
            ),
            ([part(0, "cd", "ab", [0.5])], "one confidence for each of its 2 samples"),
            ([part(0, "cd", "ab", [0.5, 1.5])], r"must lie in \[0, 1\]"),
            ([part(0, "cd", "ab", [0.5, math.nan])], r"must lie in \[0, 1\]"),
        ],
    )
    def test_refuses(self, parts, message):
        with pytest.raises(ValueError, match=message):
            out_of_fold_rating(list("abcd"), parts)

    def test_a_twin_of_a_rated_sample_is_a_leak(self):
        parts = [part(0, "cd", "ab", [0.5, 0.5]), part(1, "ab", "cd", [0.5, 0.5])]
        check_out_of_fold(list("abcd"), parts)
        with pytest.raises(ValueError, match="leak"):
            check_out_of_fold(list("abcd"), parts, groups=["g", "h", "g", "i"])

    def test_folds_of_assign_folds_pass(self):
        groups = [f"g{i % 9}" for i in range(20)]
        folds = assign_folds(IDS, 4, groups=groups)
        parts = []
        for f in range(4):
            held_out = tuple(i for i, k in zip(IDS, folds, strict=True) if k == f)
            parts.append(
                FoldScores(f, frozenset(IDS) - set(held_out), held_out, np.full(len(held_out), f / 4))
            )
        np.testing.assert_allclose(out_of_fold_rating(IDS, parts, groups=groups), 1.0 - folds / 4)


class TestDisagreement:
    def test_by_hand(self):
        offsets = [0, 2, 4, 6, 7]
        probs = [[1.0, 0.0, 1.0, 0.0, 0.5, 0.5, 1.0], [0.0, 1.0, 1.0, 0.0, 0.5, 0.5, 1.0]]
        votes = ChoiceVotes.from_probs(probs, offsets, [1.0, 1.0])
        np.testing.assert_allclose(disagreement_rating(votes), [1.0, 0.0, 0.0, 0.0], atol=1e-12)
        np.testing.assert_allclose(disagreement_rating(votes, "pairs"), [1.0, 0.0, 0.0, 0.0])

    def test_three_members(self):
        probs = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]
        votes = ChoiceVotes.from_probs(probs, [0, 3], np.ones(3))
        mean = np.array([1.7, 1.0, 0.3]) / 3
        entropy = -(np.array([0.8, 0.1, 0.1]) * np.log([0.8, 0.1, 0.1])).sum()
        expected = (-(mean * np.log(mean)).sum() - entropy) / math.log(3)
        np.testing.assert_allclose(disagreement_rating(votes), [expected])
        np.testing.assert_allclose(disagreement_rating(votes, "pairs"), [2 / 3])

    @pytest.mark.parametrize(
        ("sure_of", "n_choices", "expected"),
        [
            # As far apart as so many members can be on so many choices.
            ([0, 1], 3, 1.0),
            ([0, 0, 1], 2, 1.0),
            ([0, 0, 1, 2], 3, 1.0),
            # Two and two: log 2, where two, one and one would be 1.5 log 2.
            ([0, 0, 1, 1], 3, 2 / 3),
        ],
    )
    def test_the_unit_is_the_largest_disagreement_that_there_can_be(self, sure_of, n_choices, expected):
        votes = ChoiceVotes.from_probs(np.eye(n_choices)[sure_of], [0, n_choices], np.ones(len(sure_of)))
        np.testing.assert_allclose(disagreement_rating(votes), [expected])

    @pytest.mark.parametrize("how", ["jensen_shannon", "pairs"])
    def test_every_member_counts_alike(self, how):
        votes = [ChoiceVotes.from_probs(np.eye(2), [0, 2], alphas) for alphas in ([1.0, 1.0], [3.0, 1.0])]
        np.testing.assert_array_equal(*(disagreement_rating(v, how) for v in votes))

    def test_refuses_one_member_and_unknown_ways(self):
        votes = ChoiceVotes.from_probs([[0.5, 0.5]], [0, 2], [1.0])
        with pytest.raises(ValueError, match="at least 2 members"):
            disagreement_rating(votes)
        with pytest.raises(ValueError, match="jensen_shannon, pairs"):
            disagreement_rating(votes, "variance")


class TestSplit:
    @given(
        st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]), min_size=2, max_size=30),
        st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9]),
    )
    def test_is_the_split_of_the_data_configuration(self, values, quantile):
        pool = [
            Sample(id=str(i), question="q", choices=None, answer="a", difficulty=v)
            for i, v in enumerate(values)
        ]
        config = SplitConfig(method="difficulty", easy_quantile=quantile)
        try:
            easy, _ = divide_pool(pool, config)
        except DataError:
            with pytest.raises(ValueError, match="choose another quantile"):
                easy_hard_split(values, quantile=quantile)
            return
        mask, threshold = easy_hard_split(values, quantile=quantile)
        assert [s.id for s in easy] == [str(i) for i in np.flatnonzero(mask)]
        assert threshold == max(v for v, m in zip(values, mask, strict=True) if m)

    def test_threshold_and_ties(self):
        mask, threshold = easy_hard_split([0.1, 0.2, 0.2, 0.9], quantile=0.5)
        assert (mask.tolist(), threshold) == ([True, True, True, False], 0.2)
        mask, threshold = easy_hard_split([0.1, 0.2, 0.2, 0.9], threshold=0.15)
        assert (mask.tolist(), threshold) == ([True, False, False, False], 0.15)

    def test_a_share_of_whole_samples_is_not_rounded_up(self):
        assert 0.07 * 100 > 7  # the trap
        mask, threshold = easy_hard_split(np.arange(100.0), quantile=0.07)
        assert (mask.sum(), threshold) == (7, 6.0)

    @pytest.mark.parametrize(
        ("values", "options", "message"),
        [
            ([0.1, 0.1], {"quantile": 0.5}, "all 2 samples are easy"),
            ([0.1, 0.2], {"threshold": 0.0}, "all 2 samples are hard"),
            ([0.1, 0.2], {}, "exactly one"),
            ([0.1, 0.2], {"quantile": 1.0}, "quantile must lie"),
            ([0.1, math.nan], {"quantile": 0.5}, "finite"),
        ],
    )
    def test_refuses(self, values, options, message):
        with pytest.raises(ValueError, match=message):
            easy_hard_split(values, **options)
