"""The confidence loss: thresholds of a whole batch, and what is hardened by them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ensemw2s.training.losses import BatchState, SoftTargets, Targets, make_loss, prepare_batch
from ensemw2s.training.losses.confidence import class_thresholds, top_threshold

V = 5
# What a student says of three classes, a row a position, whose weak labels follow.
STUDENT = torch.tensor(
    [[0.35, 0.05, 0.6], [0.85, 0.05, 0.1], [0.3, 0.05, 0.65], [0.6, 0.2, 0.2]], dtype=torch.float64
)
LABELS = [0, 0, 1, 2]


def targets_of(labels: list[int], **more: Any) -> Targets:
    return Targets(torch.tensor(labels), more.pop("weights", torch.ones(len(labels))), **more)


def binary(p1: list[float]) -> torch.Tensor:
    """Logits of two classes with these probabilities of class 1."""
    p = torch.tensor(p1, dtype=torch.float64)
    return torch.stack([1 - p, p], -1).log().requires_grad_()


class TestThresholds:
    def test_half_of_a_balanced_batch(self) -> None:
        p1 = torch.tensor([0.9, 0.6, 0.8, 0.7])
        weak = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 2)
        thresholds = class_thresholds(torch.stack([1 - p1, p1], -1).double().log(), weak).exp()
        torch.testing.assert_close(thresholds, torch.tensor([0.25, 0.75], dtype=torch.float64))

    @pytest.mark.parametrize("ones", range(11))
    def test_two_classes_take_exactly_the_weak_share(self, ones: int) -> None:
        p1 = torch.rand(10, generator=torch.Generator().manual_seed(ones)).double()
        weak = torch.zeros(10, 2)
        weak[:ones, 1], weak[ones:, 0] = 1.0, 1.0
        probs = torch.stack([1 - p1, p1], -1)
        chosen = (probs.log() - class_thresholds(probs.log(), weak)).argmax(-1)
        assert int(chosen.sum()) == ones
        if 0 < ones < 10:
            assert p1[chosen == 1].min() > p1[chosen == 0].max()

    def test_counts_are_whole_and_add_up(self) -> None:
        # 3 rows of 1/3 each for four classes: no class would get a row by plain rounding.
        probs = torch.eye(4)[:3] * 0.4 + 0.15
        thresholds = class_thresholds(probs.log(), torch.full((3, 4), 0.25))
        assert int(torch.isfinite(thresholds).sum()) == 3
        assert thresholds[3] == torch.inf

    def test_a_single_row_is_of_the_class_that_the_weak_label_gives_more(self) -> None:
        thresholds = class_thresholds(torch.tensor([[0.6, 0.4]]).log(), torch.tensor([[0.7, 0.3]]))
        assert thresholds.tolist() == [-torch.inf, torch.inf]

    def test_three_classes_by_hand(self) -> None:
        # Two rows for class 0, one each for the others: midway between .6 and .35, .2 and .05, .65 and .6.
        thresholds = class_thresholds(STUDENT.log(), torch.eye(3)[LABELS]).exp()
        torch.testing.assert_close(thresholds, torch.tensor([0.475, 0.125, 0.625], dtype=torch.float64))

    def test_top_threshold(self) -> None:
        values = torch.tensor([0.1, 0.9, 0.5, 0.7])
        assert top_threshold(values, 0.5) == pytest.approx(0.6)
        # Half of three is rounded up.
        assert top_threshold(values[:3], 0.5) == pytest.approx(0.3)
        assert top_threshold(values, 0.0) == float("inf")
        assert top_threshold(values, 1.0) == float("-inf")
        assert top_threshold(torch.empty(0), 0.5) == float("inf")


class TestConfidence:
    def test_binary_by_hand_with_its_gradient(self) -> None:
        """All four are above 0.5, but only the two largest may become class 1."""
        logits, labels = binary([0.9, 0.6, 0.8, 0.7]), [0, 1, 1, 0]
        loss = make_loss("confidence", {"classes": (0, 1), "alpha_max": 0.4, "warmup": 0.2})
        targets = targets_of(labels)
        state = prepare_batch(loss, [(logits, targets)], progress=0.5)
        ours = loss(logits, targets, state)
        hard = [1, 0, 1, 0]
        q = logits.detach().exp()
        expected = [
            -0.6 * q[i, y].log() - 0.4 * q[i, h].log()
            for i, (y, h) in enumerate(zip(labels, hard, strict=True))
        ]
        torch.testing.assert_close(ours, torch.stack(expected))
        onehot = torch.eye(2, dtype=torch.float64)
        by_hand = q - 0.6 * onehot[labels] - 0.4 * onehot[hard]
        torch.testing.assert_close(torch.autograd.grad(ours.sum(), logits)[0], by_hand)

    def test_the_class_furthest_above_its_threshold_in_proportion_is_the_prediction(self) -> None:
        logits, targets = STUDENT.log(), targets_of(LABELS)
        loss = make_loss("confidence", {"classes": (0, 1, 2), "warmup": 0.0, "alpha_max": 1.0})
        ours = loss(logits, targets, prepare_batch(loss, [(logits, targets)], 0.0))
        # The last row is class 1: .2 / .125 is more than .6 / .475, though .2 - .125 is less than .6 - .475.
        torch.testing.assert_close(ours, -STUDENT.log()[range(4), [2, 0, 2, 1]])

    def test_warm_up(self) -> None:
        loss = make_loss("confidence", {"alpha_max": 0.75, "warmup": 0.2})
        assert [loss.alpha(p) for p in (0.0, 0.05, 0.1, 0.2, 0.9)] == pytest.approx(
            [0, 0.1875, 0.375, 0.75, 0.75]
        )
        logits, targets = torch.randn(4, V), targets_of([0, 1, 2, 3])
        plain = make_loss("cross_entropy")(logits, targets, BatchState())
        assert torch.equal(loss(logits, targets, prepare_batch(loss, [(logits, targets)], 0.0)), plain)
        at_once = make_loss("confidence", {"warmup": 0.0})
        assert at_once.alpha(0.0) == 0.5

    def test_the_soft_weak_label_is_used(self) -> None:
        logits = binary([0.9, 0.6, 0.8, 0.7])
        weak = torch.tensor([[0.2, 0.8]] * 3 + [[0.4, 0.6]], dtype=torch.float64)
        soft = SoftTargets(torch.tensor([[0, 1]] * 4), weak)
        targets = targets_of([1] * 4, soft=soft)
        loss = make_loss("confidence", {"classes": (0, 1), "warmup": 0.0})
        # A mean weak probability of 0.75: three of four become class 1.
        state = prepare_batch(loss, [(logits, targets)], 0.0)
        q = logits.detach().exp()
        hard = torch.eye(2, dtype=torch.float64)[[1, 0, 1, 1]]
        expected = -((0.5 * weak + 0.5 * hard) * q.log()).sum(-1)
        torch.testing.assert_close(loss(logits, targets, state), expected, rtol=1e-5, atol=1e-6)

    def test_a_soft_label_counts_by_its_shares_of_the_classes(self) -> None:
        """A fifth of it is on a token that is no class: of the classes it says 1 to 3."""
        soft = SoftTargets(torch.tensor([[0, 1, 2]]), torch.tensor([[0.2, 0.6, 0.2]]))
        loss = make_loss("confidence", {"classes": (0, 1)})
        _, weak = loss.statistics(torch.zeros(1, V), targets_of([1], soft=soft)).split(2, dim=-1)
        assert weak[0].tolist() == pytest.approx([0.25, 0.75])

    def test_positions_of_other_labels_keep_cross_entropy(self) -> None:
        logits = torch.randn(4, V, generator=torch.Generator().manual_seed(3))
        targets = targets_of([2, 3, 4, 2])
        loss = make_loss("confidence", {"classes": (2, 3), "warmup": 0.0})
        state = prepare_batch(loss, [(logits, targets)], 0.0)
        ours = loss(logits, targets, state)
        plain = make_loss("cross_entropy")(logits, targets, state)
        assert torch.equal(ours[2], plain[2])
        # The threshold was set by the three positions of a class: two of class 2, one of class 3.
        share = logits[[0, 1, 3]][:, [2, 3]].double().log_softmax(-1)
        torch.testing.assert_close(state.prepared, class_thresholds(share, torch.eye(2)[[0, 1, 0]]))

    @pytest.mark.parametrize(
        ("logits", "labels", "hardened"),
        [
            # Margins of more than 103 nats, at which a probability in single precision is 0.
            ([[120.0, 0], [130, 0], [140, 0], [125, 0]], [1, 0, 0, 1], [1, 0, 0, 1]),
            ([[120.0, 0, 0], [0, 120, 0], [0, 0.5, -200], [1, 0, -200]], [0, 1, 2, 0], [0, 1, 1, 0]),
        ],
    )
    def test_very_sure_predictions_are_hardened_by_their_order(
        self, logits: list[list[float]], labels: list[int], hardened: list[int]
    ) -> None:
        loss = make_loss(
            "confidence", {"classes": tuple(range(len(logits[0]))), "warmup": 0.0, "alpha_max": 1.0}
        )
        said, targets = torch.tensor(logits), targets_of(labels)
        ours = loss(said, targets, prepare_batch(loss, [(said, targets)], 0.0))
        torch.testing.assert_close(ours, -said.log_softmax(-1)[range(4), hardened])

    def test_free_text_hardens_where_the_student_is_surest(self) -> None:
        logits = torch.tensor([[4.0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0], [0, 0, 3.0, 0, 0], [0, 0, 0, 0, 2.0]])
        targets = targets_of([1, 0, 2, 3])
        loss = make_loss("confidence", {"warmup": 0.0, "alpha_max": 1.0})
        ours = loss(logits, targets, prepare_batch(loss, [(logits, targets)], 0.0))
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 0, 2, 3]), reduction="none")
        torch.testing.assert_close(ours, expected)

    def test_predictions_that_tie_at_the_cut_are_not_hardened(self) -> None:
        """Half of two equal positions: neither is surer, and both keep the cross-entropy with the label."""
        logits, targets = torch.tensor([[4.0, 0.0], [4.0, 0.0]]), targets_of([1, 1])
        loss = make_loss("confidence", {"warmup": 0.0, "alpha_max": 1.0})
        ours = loss(logits, targets, prepare_batch(loss, [(logits, targets)], 0.0))
        torch.testing.assert_close(ours, torch.full((2,), math.log1p(math.exp(4.0))))

    def test_masked_positions_have_no_say(self) -> None:
        logits, labels = torch.randn(6, V, generator=torch.Generator().manual_seed(5)), [0, 1, 2, 3, 4, 0]
        for options in ({}, {"classes": (0, 1, 2)}):
            loss = make_loss("confidence", options)
            masked = targets_of(labels, weights=torch.tensor([1.0, 2.0, 0.5, 0.0, 0.0, 0.0]))
            whole = loss.statistics(logits, masked)
            assert torch.equal(whole, loss.statistics(logits[:3], targets_of(labels[:3])))

    def test_needs_the_whole_batch(self) -> None:
        with pytest.raises(ValueError, match="call prepare_batch first"):
            make_loss("confidence")(torch.randn(1, V), targets_of([0]), BatchState(0.5))

    @pytest.mark.parametrize("options", [{}, {"classes": (0, 1)}])
    def test_a_batch_without_any_position_that_counts(self, options: dict[str, Any]) -> None:
        loss = make_loss("confidence", {"warmup": 0.0, **options})
        logits, targets = torch.randn(2, V), targets_of([0, 1], weights=torch.zeros(2))
        values = loss(logits, targets, prepare_batch(loss, [(logits, targets)], 0.5))
        assert torch.isfinite(values).all()
