"""What a model is, from its configuration alone: layers, parameters, context; no weights are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.classifier import empty_classifier
from ensemw2s.models.files import check_weights_exist, config_problem, first_line, read_config
from ensemw2s.models.layers import kept_layers, select_layers
from ensemw2s.models.lora import with_adapters
from ensemw2s.models.quiet import quiet
from ensemw2s.models.sources import resolve_source
from ensemw2s.models.trainable import trained_share


@dataclass(frozen=True)
class ModelFacts:
    """A model as configured, layers already left out.

    Attributes:
        display_name: name for tables.
        architecture: class name, for example ``LlamaForCausalLM``.
        n_layers: decoder layers.
        n_parameters: all parameters, shared ones once.
        n_trainable: those that training changes: of adapters, of the upper layers (about), or all.
        n_compute_parameters: those without the token and position embeddings, the N of Kaplan et al. (2020),
            section 2.1; an output head of its own does not count either.
        hidden_size: width of the residual stream.
        vocab_size: width of the output.
        max_positions: longest context, or None where the configuration names none.
        local: the files are on this machine (not on the hub).
    """

    display_name: str
    architecture: str
    n_layers: int
    n_parameters: int
    n_trainable: int
    n_compute_parameters: int
    hidden_size: int
    vocab_size: int
    max_positions: int | None
    local: bool


def inspect_model(model: ModelConfig) -> ModelFacts:
    """Check that a model can be used, and describe it; no weights are loaded (a hub's GGUF file is fetched).

    Raises:
        ModelError: one line for anything that :func:`ensemw2s.models.loading.load_model` would trip over
            later and that can be seen now: missing folder, configuration or weights, an unknown hub id, no
            causal language model, code that needs trust, quantized weights, layers that do not exist.
    """
    source = resolve_source(model)
    check_weights_exist(model, source)
    config = read_config(model, source)
    built = _build_on_meta(model, config)
    text_config = config.get_text_config(decoder=True)
    kept = kept_layers(model, int(text_config.num_hidden_layers))
    if kept is not None:
        select_layers(built, kept)
    if model.head == "classifier":
        empty_classifier(config)
    n_layers = len(kept) if kept is not None else int(text_config.num_hidden_layers)
    total, trainable = n_parameters(built), round(trained_share(model, n_layers) * n_parameters(built))
    embedded = _n_embedding_parameters(built)
    shape = built.config.get_text_config(decoder=True)
    if model.lora is not None:
        adapted = with_adapters(built, model.lora, model.display_name)
        trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    return ModelFacts(
        display_name=model.display_name,
        architecture=type(built).__name__,
        n_layers=int(shape.num_hidden_layers),
        n_parameters=total,
        n_trainable=trainable,
        n_compute_parameters=total - embedded,
        hidden_size=int(shape.hidden_size),
        vocab_size=int(shape.vocab_size),
        max_positions=max_positions(built.config),
        local=source.local,
    )


def n_parameters(model: nn.Module) -> int:
    """Number of parameters; one that is shared (tied embeddings) counts once."""
    return sum(p.numel() for p in model.parameters())


def flops_per_token(
    n_compute_parameters: int, *, training: bool = False, adapter: bool = False, trained_share: float = 1.0
) -> float:
    """Estimated floating-point operations for one token: 2 N forward, 6 N forward and backward.

    Kaplan et al. (2020), "Scaling laws for neural language models", section 2.1: N leaves the embeddings out,
    and the attention over the context is left out as small. Training an adapter needs no gradients of the
    frozen weights: 4 N. Where only the upper layers are trained (``trained_share`` of them), the backward pass ends there.
    """
    factor = 2.0 + ((2.0 if adapter else 4.0) * trained_share if training else 0.0)
    return factor * n_compute_parameters


def max_positions(config: Any) -> int | None:
    """Longest context that a transformers configuration names, or None."""
    value = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(value) if value else None


def _build_on_meta(model: ModelConfig, config: Any) -> Any:
    try:
        with torch.device("meta"), quiet(True):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    except (ValueError, ImportError, OSError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(config_problem(model, resolve_source(model), error)) from error
        kind = getattr(config, "model_type", type(config).__name__)
        raise ModelError(
            f"model {model.path!r} ({kind}) is not a causal language model that can be built: "
            f"{first_line(error)}"
        ) from error


def _n_embedding_parameters(model: Any) -> int:
    seen: dict[int, int] = {}
    for module in (
        *(m for m in model.modules() if isinstance(m, nn.Embedding)),
        model.get_output_embeddings(),
    ):
        for parameter in module.parameters() if module is not None else ():
            seen[id(parameter)] = parameter.numel()
    return sum(seen.values())
