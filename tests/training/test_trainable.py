"""Training a part of a model: what is frozen stays bit for bit, and kept activations train as fresh ones do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from transformers import AutoConfig, AutoModelForCausalLM

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, ModelConfig, TrainingConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.classifier import replace_head
from ensemw2s.models.facts import flops_per_token, inspect_model
from ensemw2s.models.heads import divided
from ensemw2s.models.storage import load_saved, save_model
from ensemw2s.models.trainable import ActivationCache, freeze
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.loop import fit
from ensemw2s.training.plan import TrainingSet

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "tie_word_embeddings": True,
    },
    "gpt2": {"n_layer": 3, "n_embd": 16, "n_head": 2, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
    "gpt_neox": {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
        "hidden_dropout": 0.2,
    },
    "opt": {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 12,
        "dropout": 0.2,
    },
}
# What is trained with trainable 1 besides the last layer.
AFTER = {
    "llama": ["norm"],
    "gpt2": ["ln_f"],
    "gpt_neox": ["final_layer_norm", "lm_head"],
    "opt": ["project_out", "decoder.final"],
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def model_of(family: str) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            family, vocab_size=40, eos_token_id=0, bos_token_id=0, pad_token_id=1, **FAMILIES[family]
        )
    ).train()


def data_of(n: int = 9) -> TrainingSet:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 40, size=int(k)).astype(np.int32) for k in rng.integers(1, 8, size=n)]
    targets = [rng.integers(2, 40, size=int(k)).astype(np.int32) for k in rng.integers(1, 4, size=n)]
    return TrainingSet.uniform(prompts, targets)


def train(family: str, trainable: Any, *, cache: bool, **changes: Any) -> tuple[Any, TorchBackend]:
    model = model_of(family)
    frozen = freeze(model, ModelConfig(path="tiny", trainable=trainable))
    assert frozen is not None
    kept = ActivationCache(frozen) if cache else None
    config = TrainingConfig(
        **{"epochs": 3, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, **changes}
    )
    backend = TorchBackend(model, config)
    fit(backend, data_of(), config, seed=7, pad_id=0, frozen=frozen, kept=kept)
    return model, backend


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("trainable", [1, "head"])
def test_only_the_part_is_trained_and_kept_activations_change_nothing(family: str, trainable: Any) -> None:
    before = {n: p.detach().clone() for n, p in model_of(family).named_parameters()}
    model, backend = train(family, trainable, cache=False)
    after = dict(model.named_parameters())
    changed = {n for n, p in after.items() if n not in before or not torch.equal(p, before[n])}
    if trainable == "head":
        assert changed == {next(n for n, p in after.items() if p is model.get_output_embeddings().weight)}
    else:
        assert {n for n in before if (".2." in n and "layers" in n) or "h.2." in n} <= changed
        rest = [n for n in changed if ".2." not in n]
        assert rest
        assert all(any(part in n for part in AFTER[family]) for n in rest), rest
        assert {part for part in AFTER[family] if any(part in n for n in rest)} == set(AFTER[family])
    # No gradient and no optimizer state for what is frozen.
    held = sum(p.numel() for group in backend.optimizer.param_groups for p in group["params"])
    assert held == sum(after[n].numel() for n in changed)
    cached = dict(train(family, trainable, cache=True)[0].named_parameters())
    # float32, one process: batches of another width round differently.
    for name, value in after.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-4, atol=1e-5)


def test_a_probe_with_classes_is_a_logistic_regression_on_frozen_activations() -> None:
    """Trained to the optimum the head of classes is scikit-learn's, without intercept and without penalty."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(2, 40, size=int(k)).astype(np.int32) for k in rng.integers(2, 7, size=150)]
    classes = rng.integers(0, 3, size=150)
    model = model_of("llama").eval()
    with torch.no_grad():
        last = [model.model(torch.tensor(p[None].astype(np.int64))).last_hidden_state[0, -1] for p in prompts]
    features = torch.stack(last).double().numpy()
    fitted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8, max_iter=5000).fit(features, classes)
    replace_head(model, 3)
    frozen = freeze(model, ModelConfig(path="tiny", trainable="head", head="classifier"))
    assert frozen is not None
    config = TrainingConfig(
        epochs=400, batch_size=150, micro_batch_size=150, learning_rate=0.1, weight_decay=0.0
    )
    data = TrainingSet.uniform(prompts, [np.array([c], dtype=np.int32) for c in classes])
    fit(
        TorchBackend(model, config),
        data,
        config,
        seed=7,
        pad_id=0,
        frozen=frozen,
        kept=ActivationCache(frozen),
    )
    ours = torch.softmax(torch.stack(last) @ model.get_output_embeddings().weight.T, dim=1)
    np.testing.assert_allclose(ours.detach().numpy(), fitted.predict_proba(features), atol=5e-3)


def test_from_the_second_epoch_on_frozen_layers_do_not_run() -> None:
    model = model_of("llama")
    # Tries the model on two tokens, once.
    divided(model)
    frozen = freeze(model, ModelConfig(path="tiny", trainable=1))
    assert frozen is not None
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    # An attention inside of the layer: the layer itself is passed through.
    frozen.layers[0].self_attn.register_forward_hook(count)
    config = TrainingConfig(epochs=3, batch_size=9, micro_batch_size=3, learning_rate=1e-2)
    kept: dict[int, torch.Tensor] = {}
    options = {"seed": 7, "pad_id": 0, "frozen": frozen}
    fit(TorchBackend(model, config), data_of(), config, kept=ActivationCache(frozen, None, kept), **options)
    assert calls == 3
    # The next member has drawn some of the rows, one of them twice.
    drawn, data = [4, 4, 2, 7], data_of()
    other = TrainingSet.uniform([data.prompts[i] for i in drawn], [data.targets[i] for i in drawn])
    fit(TorchBackend(model, config), other, config, kept=ActivationCache(frozen, drawn, kept), **options)
    assert calls == 3
    assert "forward" not in vars(frozen.layers[0])


def test_members_from_kept_activations_are_those_from_fresh_ones(
    make_tiny: Callable[..., dict[str, Any]], tiny_strong: Path, tmp_path: Path
) -> None:
    found = []
    for cache in (False, True):
        made = make_tiny(
            tmp_path / str(cache),
            boosting={"rounds": 2, "method": "bagging"},
            runtime__cache_activations=cache,
        )
        made["weak"]["models"] = [{"path": str(tiny_strong), "trainable": 1}]
        run_dir = api.run(ExperimentConfig.model_validate(made), until="labels").run_dir
        found.append(load_file(run_dir / "members" / "01" / "model.safetensors"))
    start = load_file(tiny_strong / "model.safetensors")
    fresh, kept = found
    for name, value in fresh.items():
        # float32: 24 steps of Adam widen differences of rounding.
        torch.testing.assert_close(kept[name], value, rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(fresh[name], start[name]) for name in start)


def test_the_kept_columns_are_those_of_each_row() -> None:
    model = model_of("llama")
    frozen = freeze(model, ModelConfig(path="tiny", trainable="head"))
    assert frozen is not None
    frozen.keep_still(model)
    cache = ActivationCache(frozen)
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]])
    inputs = {"attention_mask": mask, "position_ids": positions, "use_cache": False, "logits_to_keep": 2}
    with cache.reading((4, 2), [3, 5], [1, 1]):
        fresh = model(input_ids=ids, **inputs).logits
    # Other ids: what was kept is used, not what is read. The other order: rows go by their number.
    with cache.reading((4, 2), [3, 5], [1, 1]):
        torch.testing.assert_close(model(input_ids=torch.zeros_like(ids), **inputs).logits, fresh)
    with cache.reading((2, 4), [5, 3], [1, 1]):
        torch.testing.assert_close(model(input_ids=ids, **inputs).logits, fresh.flip(0))


def test_an_untied_head_is_saved_and_read_again(tmp_path: Path, tiny_weak: Path) -> None:
    from ensemw2s.models.loading import load_model, load_tokenizer

    base = ModelConfig(path=str(tiny_weak), trainable="head")
    model = load_model(base, device="cpu", dtype=torch.float32, for_training=True)
    freeze(model, base)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2.0)
    save_model(model, load_tokenizer(base), tmp_path / "saved", base=base)
    ids = torch.tensor([[5, 6, 7]])
    again = load_saved(tmp_path / "saved", device="cpu", dtype=torch.float32)
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)
    plain = load_model(ModelConfig(path=str(tiny_weak)), device="cpu", dtype=torch.float32)
    torch.testing.assert_close(again(ids).logits, 2.0 * plain(ids).logits)


def test_too_many_layers_are_refused_and_the_cost_counts_the_part(tiny_strong: Path) -> None:
    with pytest.raises(ModelError, match=r"trainable 3 of .*: it has 3 layers; give fewer"):
        inspect_model(ModelConfig(path=str(tiny_strong), trainable=3))
    with pytest.raises(ValueError, match="give one of them"):
        ModelConfig(path="x", trainable=2, lora={"rank": 4})  # type: ignore[arg-type]
    # Forward 2 N, backward 4 N of a third of the layers.
    assert flops_per_token(300, training=True, trained_share=1 / 3) == pytest.approx(2 * 300 + 4 * 100)
