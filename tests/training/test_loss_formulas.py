"""Loss formulas against torch's own, against values and gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from ensemw2s.training.losses import BatchState, Targets, make_loss
from ensemw2s.training.losses.formulas import (
    REMAINDERS,
    SoftTargets,
    hard_cross_entropy,
    product_of_experts,
    smoothed_cross_entropy,
    soft_cross_entropy,
)

V = 6


def logits_of(*shape: int, seed: int = 0) -> torch.Tensor:
    values = 2.0 * torch.randn(*shape, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.requires_grad_()


def log_of(probs: list[float]) -> torch.Tensor:
    return torch.tensor([probs], dtype=torch.float64).log().requires_grad_()


def gradient(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss.sum(), logits)[0]


def by_name(name: str, logits: torch.Tensor, soft: SoftTargets, **options: float | str) -> torch.Tensor:
    """The same of the loss that a configuration names."""
    targets = Targets(torch.zeros(len(logits), dtype=torch.int64), torch.ones(len(logits)), soft)
    return make_loss(name, options)(logits, targets, BatchState())


def dense(probs: torch.Tensor) -> SoftTargets:
    """A full distribution as soft targets, its tokens in a shuffled order."""
    order = torch.randperm(V, generator=torch.Generator().manual_seed(1))
    return SoftTargets(order.expand(probs.shape), probs[..., order])


def test_hard_cross_entropy_is_that_of_torch() -> None:
    logits, labels = logits_of(3, 4), torch.arange(12).view(3, 4) % V
    expected = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(3, 4)
    assert torch.equal(hard_cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_smoothing_is_that_of_torch(smoothing: float) -> None:
    logits, labels = logits_of(3, 4), torch.arange(12).view(3, 4) % V
    ours = smoothed_cross_entropy(logits, labels, torch.full((3, 4), smoothing))
    expected = cross_entropy(
        logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
    )
    torch.testing.assert_close(ours.flatten(), expected)


def test_each_position_has_its_own_smoothing() -> None:
    logits, labels = logits_of(2), torch.tensor([1, 4])
    ours = smoothed_cross_entropy(logits, labels, torch.tensor([0.0, 0.3]))
    for row, smoothing in ((0, 0.0), (1, 0.3)):
        expected = cross_entropy(logits[row : row + 1], labels[row : row + 1], label_smoothing=smoothing)
        torch.testing.assert_close(ours[row], expected)


class TestSoftCrossEntropy:
    @pytest.mark.parametrize("remainder", REMAINDERS)
    def test_a_full_distribution_is_torchs_soft_cross_entropy(self, remainder: str) -> None:
        logits = logits_of(5)
        probs = torch.rand(5, V, generator=torch.Generator().manual_seed(2)).softmax(-1)
        ours = soft_cross_entropy(logits, dense(probs), remainder)
        expected = cross_entropy(logits, probs.double(), reduction="none")
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient(ours, logits), gradient(expected, logits), rtol=1e-5, atol=1e-6)
        assert torch.isfinite(gradient(soft_cross_entropy(logits, dense(probs), remainder), logits)).all()

    @pytest.mark.parametrize("remainder", REMAINDERS)
    def test_one_certain_token_is_a_hard_label(self, remainder: str) -> None:
        logits = logits_of(1)
        soft = SoftTargets(torch.tensor([[3, -1]]), torch.tensor([[1.0, 0.7]]))
        ours = soft_cross_entropy(logits, soft, remainder)
        torch.testing.assert_close(ours, hard_cross_entropy(logits, torch.tensor([3])))

    def test_the_remainder_by_hand(self) -> None:
        q = [0.4, 0.3, 0.1, 0.1, 0.06, 0.04]
        logits, soft = log_of(q), SoftTargets(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.3]]))
        sent = -0.5 * math.log(0.3) - 0.3 * math.log(0.4)
        by_hand = {
            "bucket": sent - 0.2 * math.log(0.3),
            "spread": sent - 0.05 * sum(math.log(x) for x in q[2:]),
            "renormalize": sent / 0.8,
        }
        for remainder, expected in by_hand.items():
            assert soft_cross_entropy(logits, soft, remainder).item() == pytest.approx(expected, rel=1e-6)
            named = by_name("soft_cross_entropy", logits, soft, remainder=remainder)
            assert named.item() == pytest.approx(expected, rel=1e-6)

    def test_gradients_of_the_remainder_by_hand(self) -> None:
        q = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.06, 0.04], dtype=torch.float64)
        logits, soft = log_of(q.tolist()), SoftTargets(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.3]]))
        # q less the target: what is left of the target is shared like q itself (bucket), evenly, or not at all.
        targets = {
            "bucket": [0.3, 0.5, *(0.2 * q[2:] / 0.3).tolist()],
            "spread": [0.3, 0.5, 0.05, 0.05, 0.05, 0.05],
            "renormalize": [0.375, 0.625, 0.0, 0.0, 0.0, 0.0],
        }
        for remainder, target in targets.items():
            ours = gradient(soft_cross_entropy(logits, soft, remainder), logits)[0]
            torch.testing.assert_close(
                ours, q - torch.tensor(target, dtype=torch.float64), rtol=1e-5, atol=1e-6
            )

    def test_the_bucket_asks_for_no_more_than_the_vote_said(self) -> None:
        logits = log_of([0.3, 0.5, 0.1, 0.05, 0.03, 0.02])
        soft = SoftTargets(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.3]]))
        assert gradient(soft_cross_entropy(logits, soft, "bucket"), logits).abs().max() < 1e-6
        assert gradient(soft_cross_entropy(logits, soft, "spread"), logits).abs().max() > 0.01
        assert gradient(soft_cross_entropy(logits, soft, "renormalize"), logits).abs().max() > 0.1

    @pytest.mark.parametrize("remainder", REMAINDERS)
    def test_padding_changes_nothing_and_an_empty_row_stays_finite(self, remainder: str) -> None:
        logits = logits_of(3)
        plain = SoftTargets(torch.tensor([[2, 5]] * 3), torch.tensor([[0.6, 0.3]] * 3))
        padded = SoftTargets(torch.tensor([[2, 5, -1]] * 2 + [[-1] * 3]), torch.tensor([[0.6, 0.3, 9.0]] * 3))
        ours = soft_cross_entropy(logits, padded, remainder)
        torch.testing.assert_close(ours[:2], soft_cross_entropy(logits, plain, remainder)[:2])
        assert torch.isfinite(ours).all()
        assert torch.isfinite(gradient(ours, logits)).all()


class TestProductOfExperts:
    def test_by_hand_with_its_gradient(self) -> None:
        q = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.06, 0.04], dtype=torch.float64)
        p = torch.tensor([0.3, 0.5, 0.05, 0.05, 0.05, 0.05], dtype=torch.float64)
        logits, soft = log_of(q.tolist()), SoftTargets(torch.tensor([[1, 0]]), torch.tensor([[0.5, 0.3]]))
        for weak, student in ((1.0, 1.0), (0.5, 2.0), (1.0, 0.0), (0.0, 1.0)):
            target = p**weak * q**student
            target = target / target.sum()
            ours = product_of_experts(logits, soft, weak, student)
            assert ours.item() == pytest.approx(-float((target * q.log()).sum()), rel=1e-5)
            assert torch.equal(by_name("product_of_experts", logits, soft, weak=weak, student=student), ours)
            torch.testing.assert_close(gradient(ours, logits)[0], q - target, rtol=1e-5, atol=1e-6)

    def test_the_student_alone_teaches_itself_nothing(self) -> None:
        logits = logits_of(4)
        soft = SoftTargets(torch.tensor([[0, 1]] * 4), torch.tensor([[1.0, 0.0]] * 4))
        loss = product_of_experts(logits, soft, weak=0.0, student=1.0)
        assert gradient(loss, logits).abs().max() < 1e-12

    def test_a_full_distribution_without_the_student_is_soft_cross_entropy(self) -> None:
        logits = logits_of(4)
        probs = torch.rand(4, V, generator=torch.Generator().manual_seed(4)).softmax(-1)
        ours = product_of_experts(logits, dense(probs), weak=1.0, student=0.0)
        torch.testing.assert_close(ours, soft_cross_entropy(logits, dense(probs)), rtol=1e-5, atol=1e-6)

    def test_nothing_left_over_is_a_veto_and_padding_changes_nothing(self) -> None:
        logits = logits_of(3)
        certain = SoftTargets(torch.tensor([[3]] * 3), torch.tensor([[1.0]] * 3))
        torch.testing.assert_close(
            product_of_experts(logits, certain), hard_cross_entropy(logits, torch.tensor([3, 3, 3]))
        )
        padded = SoftTargets(
            torch.tensor([[3, 2, -1], [3, 2, -1], [-1] * 3]), torch.tensor([[0.6, 0.1, 0.0]] * 3)
        )
        plain = SoftTargets(torch.tensor([[3, 2]] * 3), torch.tensor([[0.6, 0.1]] * 3))
        ours = product_of_experts(logits, padded)
        torch.testing.assert_close(ours[:2], product_of_experts(logits, plain)[:2])
        assert torch.isfinite(gradient(ours, logits)).all()


@pytest.mark.parametrize(
    ("ids", "probs", "message"),
    [
        ([[0, V]], [[0.5, 0.5]], f"0..{V - 1}"),
        ([[0, -2]], [[0.5, 0.5]], "or be -1"),
        ([[1, 1]], [[0.5, 0.5]], "twice"),
        ([[-1, 1]], [[0.5, 0.5]], "follow the tokens"),
        ([[0, 1]], [[0.5, 0.6]], "at most 1"),
        ([[0, 1]], [[0.5, -0.1]], "not negative"),
        ([[0, 1]], [[0.5, math.nan]], "finite"),
        ([[0, 1]], [[0.5]], "both be"),
    ],
)
def test_soft_targets_are_checked(ids: list[list[int]], probs: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftTargets(torch.tensor(ids), torch.tensor(probs)).validate(V)


def test_soft_targets_of_half_precision_pass() -> None:
    probs = torch.tensor([[0.7, 0.2, 0.1, 0.0]], dtype=torch.float16)
    soft = SoftTargets(torch.tensor([[4, 2, 0, -1]]), probs)
    soft.validate(V)
    assert float(soft.rest(V)) == pytest.approx(0.0, abs=1e-3)
    assert float(soft.rest(3)) == 0.0
