"""What a loss is told of each target position: in a micro-batch, and at the places alone that have a loss."""

from __future__ import annotations

import numpy as np
import torch

from ensemw2s.training.collate import collate
from ensemw2s.training.losses import SoftTargets, Targets
from ensemw2s.training.plan import MicroBatch, TrainingSet


def test_soft_labels_and_uncertainty_stand_beside_their_tokens() -> None:
    """One token with one candidate, and two tokens with two each: to the right, as the labels are."""
    data = TrainingSet(
        prompts=[np.array([1]), np.array([1])],
        targets=[np.array([5]), np.array([6, 7])],
        weights=[np.ones(1), np.ones(2)],
        denominators=np.array([1.0, 2.0]),
        soft=[
            (np.array([[5]]), np.array([[0.5]])),
            (np.array([[6, 1], [7, 2]]), np.array([[0.6, 0.1], [0.7, 0.2]])),
        ],
        uncertainty=np.array([0.1, 0.4]),
    )
    batch = collate(data, MicroBatch((0, 1)), pad_id=0)
    assert batch["labels"].tolist() == [[0, 5], [6, 7]]
    assert batch["counted"].tolist() == [1, 2, 3]
    assert batch["soft_ids"].tolist() == [[[-1, -1], [5, -1]], [[6, 1], [7, 2]]]
    probs = torch.tensor([[[0.0, 0.0], [0.5, 0.0]], [[0.6, 0.1], [0.7, 0.2]]])
    torch.testing.assert_close(batch["soft_probs"], probs)
    torch.testing.assert_close(batch["uncertainty"], torch.tensor([[0.1, 0.1], [0.4, 0.4]]))


def test_all_that_is_known_of_a_position_goes_with_it() -> None:
    # Two rows of two positions with two candidates each; the second and the third have a loss.
    soft = SoftTargets(torch.arange(8).view(2, 2, 2), torch.arange(8).view(2, 2, 2) / 10)
    weights, uncertainty = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    targets = Targets(torch.tensor([[1, 2], [3, 4]]), weights, soft, uncertainty)
    found = targets.at(torch.tensor([1, 2]))
    assert found.labels.tolist() == [[2, 3]]
    assert found.weights.tolist() == [[1.0, 1.0]]
    assert found.soft is not None
    assert found.soft.ids.tolist() == [[[2, 3], [4, 5]]]
    torch.testing.assert_close(found.soft.probs, torch.tensor([[[0.2, 0.3], [0.4, 0.5]]]))
    torch.testing.assert_close(found.uncertainty, torch.tensor([[0.2, 0.3]]))
