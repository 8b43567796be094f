"""The loop: the micro-batch size changes nothing, masked tokens teach nothing, resumed = uninterrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s.config import ModelConfig, TrainingConfig
from ensemw2s.errors import ArtifactError, TrainingDiverged
from ensemw2s.models.heads import divided
from ensemw2s.models.loading import load_model
from ensemw2s.training import loop
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.checkpoint import CheckpointFolder, verify
from ensemw2s.training.loop import collate, fit, weighted_loss_sum
from ensemw2s.training.losses import BatchState, CrossEntropy, Targets, TokenLoss
from ensemw2s.training.plan import MicroBatch, TrainingSet

PAD = 0


def model_of(folder: Path) -> Any:
    return load_model(ModelConfig(path=str(folder)), device="cpu", dtype=torch.float32, for_training=True)


def data_of(n: int = 11, seed: int = 0) -> TrainingSet:
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(2, 12, size=n)]
    targets = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(1, 5, size=n)]
    weights = [rng.integers(0, 4, size=len(t)).astype(np.float64) for t in targets]
    return TrainingSet(prompts, targets, weights, np.array([len(t) for t in targets], dtype=np.float64))


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def train(folder: Path, data: TrainingSet, **changes: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    config = TrainingConfig(
        **{"epochs": 2, "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-2, **changes}
    )
    model = model_of(folder)
    report = fit(TorchBackend(model, config), data, config, seed=7, pad_id=PAD)
    return report.losses, weights_of(model)


def test_loss_is_the_hand_made_one(tiny_strong: Path) -> None:
    data = data_of(5)
    model = model_of(tiny_strong).eval()
    rows = (3, 0, 4)
    ours = weighted_loss_sum(model, collate(data, MicroBatch(rows), PAD))
    expected = 0.0
    for i in rows:
        ids = torch.tensor(np.concatenate([data.prompts[i], data.targets[i]]), dtype=torch.long)[None]
        logprobs = model(ids).logits[0].log_softmax(-1)
        for j, token in enumerate(data.targets[i]):
            expected -= float(data.weights[i][j] * logprobs[len(data.prompts[i]) + j - 1, int(token)])
    assert float(ours) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batch_size_changes_nothing(tiny_strong: Path, micro: int) -> None:
    # float32, one thread: sums run in another order, so equal to rounding only.
    data = data_of()
    losses, weights = train(tiny_strong, data)
    other_losses, other = train(tiny_strong, data, micro_batch_size=micro)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-4)
    assert all(torch.allclose(weights[n], other[n], atol=2e-4) for n in weights)


def test_a_masked_token_gives_no_gradient(tiny_weak: Path) -> None:
    prompt, target = np.array([5, 6, 7], np.int32), np.array([8, 9], np.int32)
    model = model_of(tiny_weak)

    def gradient(weight: np.ndarray, answer: np.ndarray) -> torch.Tensor:
        model.zero_grad()
        data = TrainingSet([prompt], [answer], [weight], np.ones(1))
        weighted_loss_sum(model, collate(data, MicroBatch((0,)), PAD)).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    # The last token is masked: which token it is must not matter.
    one = gradient(np.array([1.0, 0.0]), target)
    two = gradient(np.array([1.0, 0.0]), np.array([8, 50], np.int32))
    assert torch.equal(one, two)
    assert not torch.allclose(one, gradient(np.array([1.0, 1.0]), target))


def test_weight_two_is_the_token_twice(tiny_weak: Path) -> None:
    data = data_of(4, seed=3)
    model = model_of(tiny_weak)
    batch = collate(data, MicroBatch((0, 1, 2, 3)), PAD)
    once = weighted_loss_sum(model, batch)
    batch["weights"] *= 2
    assert float(weighted_loss_sum(model, batch)) == pytest.approx(2 * float(once), rel=1e-6)


def test_resumed_is_uninterrupted(tiny_strong: Path, tmp_path: Path) -> None:
    """Bit for bit: same machine, same thread count, float32."""
    data = data_of()
    config = TrainingConfig(epochs=3, batch_size=4, micro_batch_size=2, learning_rate=1e-2)
    losses, weights = train(tiny_strong, data, epochs=3, micro_batch_size=2)

    class Killed(Exception):
        pass

    folder = CheckpointFolder(tmp_path / "checkpoints")
    model = model_of(tiny_strong)
    backend = TorchBackend(model, config)

    def save(step: int, state: dict[str, Any]) -> None:
        backend.save(folder.begin(), state)
        folder.finish(step)
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        fit(backend, data, config, seed=7, pad_id=PAD, checkpoint=save, checkpoint_steps=2)
    latest = folder.latest()
    assert latest is not None
    assert verify(latest) == 4
    again = model_of(tiny_strong)
    report = fit(TorchBackend(again, config), data, config, seed=7, pad_id=PAD, resume=latest)
    assert report.losses == losses
    assert all(torch.equal(weights[n], p) for n, p in weights_of(again).items())


def test_a_damaged_checkpoint_is_never_used(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (folder.begin() / "training.pt").write_bytes(b"whole")
    folder.finish(1)
    current = folder.latest()
    assert current is not None
    (current / "training.pt").write_bytes(b"cut")
    assert folder.latest() is None
    with pytest.raises(ArtifactError, match="hash differs"):
        verify(current)


def test_a_checkpoint_without_every_rank_is_not_whole(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (folder.begin() / "training.pt").write_bytes(b"whole")
    folder.finish(1)
    current = folder.latest()
    assert current is not None
    with pytest.raises(ArtifactError, match="rank 1"):
        verify(current, world_size=2)


def test_divergence_is_said(tiny_weak: Path) -> None:
    data = data_of(4)
    config = TrainingConfig(epochs=1, batch_size=4, micro_batch_size=4)
    model = model_of(tiny_weak)
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        fit(TorchBackend(model, config), data, config, seed=0, pad_id=PAD)


def test_attention_whose_gradients_are_wrong_is_left_out(tiny_weak: Path) -> None:
    """And allowed again afterwards, when the training fails, too."""
    data, config = data_of(4), TrainingConfig(epochs=1, batch_size=4, micro_batch_size=4)
    seen: list[bool] = []

    def look(done: int, total: int, loss: float) -> None:
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        if done == total:
            raise KeyboardInterrupt

    assert torch.backends.cuda.cudnn_sdp_enabled()
    with pytest.raises(KeyboardInterrupt):
        fit(TorchBackend(model_of(tiny_weak), config), data, config, seed=0, pad_id=PAD, progress=look)
    assert seen == [False]
    assert torch.backends.cuda.cudnn_sdp_enabled()


def test_the_head_runs_where_there_is_a_loss(tiny_strong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked and padded positions are left out, and neither loss nor gradients change."""
    model = model_of(tiny_strong)
    batch = collate(data_of(5), MicroBatch((3, 0, 4)), PAD)
    seen: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
    divided(model)
    seen.clear()

    def step() -> tuple[float, dict[str, torch.Tensor]]:
        model.zero_grad()
        loss = weighted_loss_sum(model, batch)
        loss.backward()
        return float(loss.detach()), {n: p.grad.clone() for n, p in model.named_parameters()}

    value, gradients = step()
    hook.remove()
    assert seen == [int((batch["weights"] > 0).sum())]
    assert seen[0] < batch["weights"].numel()
    monkeypatch.setattr(loop, "divided", lambda model: None)
    whole, others = step()
    assert value == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], atol=1e-6, rtol=1e-5)


class Noting(TokenLoss):
    """Cross-entropy that asks for the labels of the whole batch, and notes what it is shown and told."""

    whole_batch = True

    def __init__(self) -> None:
        self.looked_at: list[float] = []
        self.taught: list[float] = []
        self.told: list[tuple[float, tuple[float, ...]]] = []

    def statistics(self, logits: torch.Tensor, targets: Targets) -> torch.Tensor:
        self.looked_at.append(float(logits.sum()))
        return targets.labels[targets.weights > 0].unsqueeze(-1).float()

    def prepare(self, statistics: torch.Tensor) -> tuple[float, ...]:
        return tuple(sorted(statistics[:, 0].tolist()))

    def __call__(self, logits: torch.Tensor, targets: Targets, state: BatchState) -> torch.Tensor:
        self.taught.append(float(logits.detach().sum()))
        self.told.append((state.progress, state.prepared))
        return CrossEntropy()(logits, targets, state)


@pytest.fixture(scope="module")
def noted(tiny_weak: Path) -> Noting:
    """Two epochs of six rows, four a batch, one at a time, with dropout; another worker's labels + 100."""
    noting = Noting()
    prompts = [np.array([1, 2], np.int32)] * 6
    data = TrainingSet.uniform(prompts, [np.array([10 + i], np.int32) for i in range(6)])
    config = TrainingConfig(epochs=2, batch_size=4, micro_batch_size=1)
    model = model_of(tiny_weak)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    backend = TorchBackend(model, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "gather_rows", lambda rows: torch.cat([rows, rows + 100]))
        patch.setattr(loop, "make_loss", lambda name, options: noting)
        fit(backend, data, config, seed=1, pad_id=PAD)
    return noting


def test_a_loss_is_told_the_share_of_the_steps_that_are_done(noted: Noting) -> None:
    # Four steps of four micro-batches, of which the last of an epoch has two that are empty.
    assert [progress for progress, _ in noted.told] == np.repeat([0.0, 0.25, 0.5, 0.75], 4).tolist()


def test_a_loss_knows_the_rows_of_all_micro_batches_and_workers(noted: Noting) -> None:
    labels: list[float] = []
    for progress, n in ((0.0, 4), (0.25, 2), (0.5, 4), (0.75, 2)):
        # Each micro-batch is told the same.
        (known,) = {prepared for at, prepared in noted.told if at == progress}
        own = known[:n]
        assert known[n:] == tuple(label + 100 for label in own)
        labels += own
    assert sorted(labels[:6]) == sorted(labels[6:]) == [10, 11, 12, 13, 14, 15]


def test_the_pass_that_is_looked_at_has_the_dropout_of_the_one_that_teaches(noted: Noting) -> None:
    assert noted.looked_at == noted.taught
