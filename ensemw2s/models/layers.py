"""Leaving layers out of a decoder makes a weaker model of the same family and tokenizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from ensemw2s.config import ModelConfig, parse_layers
from ensemw2s.errors import ModelError

#: Module attributes that say how a layer is run at the moment, not what it computes.
_RUN_STATE = frozenset({"training", "gradient_checkpointing"})


def kept_layers(model: ModelConfig, n_layers: int) -> tuple[int, ...] | None:
    """Indices of the layers that stay, ascending, or None where all do.

    Raises:
        ModelError: a layer outside ``0 .. n_layers - 1`` is named, or none would be left.
    """
    text = model.drop_layers or model.keep_layers
    if text is None:
        return None
    field = "drop_layers" if model.drop_layers else "keep_layers"
    named = parse_layers(text)
    if named[-1] >= n_layers:
        raise ModelError(
            f"{field} {text} of {model.path!r}: it has {n_layers} layers, 0-{n_layers - 1}; {named[-1]} is "
            "not among them"
        )
    kept = tuple(i for i in range(n_layers) if i not in set(named)) if model.drop_layers else named
    if not kept:
        raise ModelError(
            f"drop_layers {text} of {model.path!r} leaves none of its {n_layers} layers: keep at least one"
        )
    return None if len(kept) == n_layers else kept


def select_layers(model: Any, kept: tuple[int, ...]) -> None:
    """Leave only the ``kept`` decoder layers in the model, in place; works on the meta device too.

    The layers are numbered anew (the key/value cache is indexed by that number) and the configuration is
    corrected, so that the model saves and loads like any other of its size.

    Raises:
        ModelError: the decoder is not found, or what a layer computes depends on its position in a way that
            the configuration of the smaller model cannot express.
    """
    config = model.config.get_text_config(decoder=True)
    n_layers = int(config.num_hidden_layers)
    name, stack = find_layers(model, n_layers)
    for key, value in list(vars(config).items()):
        # layer_types, mlp_layer_types, no_rope_layers, ...: one entry a layer.
        if "layer" in key and isinstance(value, (list, tuple)) and len(value) == n_layers:
            setattr(config, key, type(value)(value[i] for i in kept))
    config.num_hidden_layers = len(kept)
    smaller = nn.ModuleList(stack[i] for i in kept)
    for index, layer in enumerate(smaller):
        for module in layer.modules():
            for attribute in ("layer_idx", "layer_id"):
                if isinstance(getattr(module, attribute, None), int):
                    setattr(module, attribute, index)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, smaller)
    _check_same_as_built(model, name)


def find_layers(model: Any, n_layers: int) -> tuple[str, nn.ModuleList]:
    """Name and modules of the decoder layers.

    Raises:
        ModelError: they are not found.
    """
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
    depth = min((n.count(".") for n, _ in lists), default=0)
    outermost = [(n, m) for n, m in lists if n.count(".") == depth]
    if len(outermost) != 1:
        raise ModelError(
            f"the {n_layers} decoder layers of {type(model).__name__} were not found ({len(outermost)} "
            "candidates): "
            "leave out drop_layers, keep_layers and trainable for this architecture"
        )
    return outermost[0]


def _check_same_as_built(model: Any, stack_name: str) -> None:
    """The layers must be what the corrected configuration builds, or a saved copy would compute otherwise."""
    refusal = (
        f"layers of {type(model).__name__} depend on their position: "
        "leave out drop_layers and keep_layers for this architecture"
    )
    try:
        with torch.device("meta"):
            built = type(model)(copy.deepcopy(model.config))
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(refusal) from error
    if _signature(model.get_submodule(stack_name)) != _signature(built.get_submodule(stack_name)):
        raise ModelError(refusal)


def _signature(stack: nn.Module) -> dict[str, object]:
    """Names, classes, plain attributes and tensor shapes of every module in the stack."""
    signature: dict[str, object] = {}
    for name, module in stack.named_modules():
        plain = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, (bool, int, float, str, type(None)))
            and key not in _RUN_STATE
            and key[0] != "_"
        }
        signature[name] = (type(module).__name__, plain)
    signature.update({f"{name} (tensor)": tuple(tensor.shape) for name, tensor in stack.named_parameters()})
    return signature
