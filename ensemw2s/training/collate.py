"""Micro-batches as tensors: padded rows, the targets and what a loss is told about them."""

from __future__ import annotations

import numpy as np
import torch

from ensemw2s.training.losses import SoftTargets, Targets
from ensemw2s.training.plan import MicroBatch, TrainingSet


def collate(data: TrainingSet, micro: MicroBatch, pad_id: int) -> dict[str, torch.Tensor]:
    """Left-padded tensors of one micro-batch, so that all targets lie in the last columns.

    Returns:
        input_ids, attention_mask, position_ids (b, s) int64; labels (b, k) int64 and weights (b, k) float32, where k
        is the longest target: column c predicts token s - k + c; counted (m,) int64, where the b * k weights in a row are above 0
        (a GPU would have to be waited for to learn it). Where the training set has them, soft_ids (b, k, n)
        int64 with -1 as padding, soft_probs (b, k, n) float32, and uncertainty (b, k) float32.
    """
    # An empty micro-batch still takes part in the collective calls: one row of weight 0.
    rows = micro.rows or (0,)
    lengths = [len(data.prompts[i]) + len(data.targets[i]) for i in rows]
    width, k = max(lengths), max(len(data.targets[i]) for i in rows)
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.zeros((len(rows), k), dtype=np.int64)
    weights = np.zeros((len(rows), k), dtype=np.float32)
    for r, (i, n) in enumerate(zip(rows, lengths, strict=True)):
        target = data.targets[i]
        ids[r, width - n :] = np.concatenate([data.prompts[i], target])
        mask[r, width - n :] = 1
        labels[r, k - len(target) :] = target
        if micro.rows:
            weights[r, k - len(target) :] = data.weights[i]
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    batch = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "position_ids": torch.from_numpy(positions),
        "labels": torch.from_numpy(labels),
        "weights": torch.from_numpy(weights),
        "counted": torch.from_numpy(np.flatnonzero(weights > 0.0)),
    }
    if data.soft is not None:
        batch["soft_ids"], batch["soft_probs"] = _soft(data, rows, k)
    if data.uncertainty is not None:
        each = torch.tensor([float(data.uncertainty[i]) for i in rows])
        batch["uncertainty"] = each[:, None].expand(-1, k)
    return batch


def _soft(data: TrainingSet, rows: tuple[int, ...], k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distributions at the targets of some rows, (b, k, m), right-aligned as the labels are."""
    if data.soft is None:
        raise ValueError("the training set has no soft labels")
    m = max(data.soft[i][0].shape[1] for i in rows)
    ids = np.full((len(rows), k, m), -1, dtype=np.int64)
    probs = np.zeros((len(rows), k, m), dtype=np.float32)
    for r, i in enumerate(rows):
        own_ids, own_probs = data.soft[i]
        ids[r, k - len(own_ids) :, : own_ids.shape[1]] = own_ids
        probs[r, k - len(own_ids) :, : own_ids.shape[1]] = own_probs
    return torch.from_numpy(ids), torch.from_numpy(probs)


def targets_of(batch: dict[str, torch.Tensor]) -> Targets:
    """What the loss is told about a micro-batch."""
    soft = SoftTargets(batch["soft_ids"], batch["soft_probs"]) if "soft_ids" in batch else None
    return Targets(batch["labels"], batch["weights"], soft, batch.get("uncertainty"))
