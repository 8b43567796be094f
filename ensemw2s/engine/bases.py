"""The pretrained models of a run: what a token through them costs, and GGUF files converted to safetensors."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from ensemw2s.config import ExperimentConfig, ModelConfig
from ensemw2s.engine.keys import pretrained_key
from ensemw2s.models.facts import flops_per_token, inspect_model
from ensemw2s.models.sources import resolve_source
from ensemw2s.models.storage import convert_model
from ensemw2s.models.trainable import trained_share
from ensemw2s.runs.cache import ResultCache, content_key, link_tree
from ensemw2s.runs.store import RunStore


@lru_cache
def compute_parameters(model: ModelConfig) -> int:
    """Parameters that compute (embeddings left out), the N of FLOP estimates."""
    return inspect_model(model).n_compute_parameters


def forward_flops(model: ModelConfig) -> float:
    """Estimated FLOPs of reading one token."""
    return flops_per_token(compute_parameters(model))


@lru_cache
def training_flops(model: ModelConfig) -> float:
    """Estimated FLOPs of training on one token."""
    facts = inspect_model(model)
    share = trained_share(model, facts.n_layers)
    return flops_per_token(
        facts.n_compute_parameters, training=True, adapter=model.lora is not None, trained_share=share
    )


def _key(model: ModelConfig) -> str:
    return hashlib.sha256(f"{model.path}|{model.revision}|{model.gguf_file}".encode()).hexdigest()[:12]


def _folder(model: ModelConfig) -> str:
    return f"bases/{_key(model)}"


def converted(run_dir: Path, model: ModelConfig) -> ModelConfig:
    """The same model, read from the run's converted copy where there is one; layers are still left out on loading."""
    folder = run_dir / _folder(model)
    if not folder.is_dir():
        return model
    update = {"path": str(folder), "label": model.display_name, "revision": None, "gguf_file": None}
    return model.model_copy(update=update)


def convert_bases(config: ExperimentConfig, store: RunStore) -> None:
    """Convert every GGUF model of the run that is not converted yet, a stage each: they load many times faster."""
    for model in (*config.weak.models, config.strong.model):
        if resolve_source(model).gguf_file is None:
            continue
        stage = f"base-{_key(model)}"
        if store.done(stage) is None:
            target = store.begin(stage) / _folder(model)
            target.parent.mkdir(parents=True)
            _convert(model.model_copy(update={"drop_layers": None, "keep_layers": None}), target, config)
            store.commit(stage, {"model": model.path})


def _convert(whole: ModelConfig, target: Path, config: ExperimentConfig) -> None:
    if config.runtime.cache is None:
        convert_model(whole, target)
        return
    cache = ResultCache(Path(config.runtime.cache))
    key = content_key({"work": "base", "model": pretrained_key(whole.model_copy(update={"lora": None}))})
    entry = cache.get(key)
    if entry is not None and entry.files is not None:
        link_tree(entry.files, target)
    else:
        convert_model(whole, target)
        cache.put(key, {}, files=target)
