"""The files of a model: are they all there, can its configuration be read, and if not, why, in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError, StrictDataclassError
from transformers import AutoConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import has_file

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.quiet import quiet
from ensemw2s.models.sources import ModelSource

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


def read_config(model: ModelConfig, source: ModelSource) -> Any:
    """The transformers configuration, layers not yet left out.

    Raises:
        ModelError: it is missing, malformed, of an unknown kind, of a quantized model, or needs code to be
            trusted.
    """
    try:
        config = once_per_file(_load_config, model, source)
    except (OSError, HTTPError, ValueError, KeyError, ImportError, StrictDataclassError) as error:
        raise ModelError(config_problem(model, source, error)) from error
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        method = (
            quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        )
        raise ModelError(
            f"model {model.path!r} is quantized ({method}) and cannot be fine-tuned: give an unquantized "
            "checkpoint or a .gguf file"
        )
    return config


def _load_config(source: ModelSource, trust_remote_code: bool) -> Any:
    with quiet(source.local):
        return AutoConfig.from_pretrained(
            source.path, trust_remote_code=trust_remote_code, **source.arguments()
        )


def once_per_file(load: Callable[[ModelSource, bool], Any], model: ModelConfig, source: ModelSource) -> Any:
    """What `load` makes of a model's files; of a local GGUF file only once, as parsing it takes ten seconds."""
    if source.gguf_file is None or not source.local:
        return load(source, model.trust_remote_code)
    written = (Path(source.path) / source.gguf_file).stat().st_mtime_ns
    return copy.deepcopy(_remember(load, source, model.trust_remote_code, written))


@lru_cache(maxsize=16)
def _remember(
    load: Callable[[ModelSource, bool], Any], source: ModelSource, trust_remote_code: bool, written: int
) -> Any:
    return load(source, trust_remote_code)


def check_weights_exist(model: ModelConfig, source: ModelSource) -> None:
    """Raise ModelError unless the source has a configuration and safetensors (or GGUF) weights."""
    if source.gguf_file is None:
        if source.local:
            _check_folder(model, Path(source.path))
        else:
            _check_hub(model, source)


def _check_folder(model: ModelConfig, folder: Path) -> None:
    name = f"model folder {model.path!r}"
    if not (folder / "config.json").is_file():
        ggufs = sorted(f.name for f in folder.glob("*.gguf"))
        if ggufs:
            raise ModelError(
                f"{name} has no config.json but {', '.join(ggufs)}: name the file with gguf_file"
            )
        if (folder / "adapter_config.json").is_file():
            raise ModelError(
                f"{name} holds an adapter only: give the folder of the model that it was trained on, or "
                "merge it"
            )
        raise ModelError(f"{name} has no config.json: give the folder of a Hugging Face model")
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(
                f"{name} has a malformed {SAFE_WEIGHTS_INDEX_NAME}: download the model again"
            ) from error
        missing = [s for s in shards if not (folder / s).is_file()]
        if missing:
            raise ModelError(
                f"{name} lacks {len(missing)} of {len(shards)} weight files ({missing[0]}): download the "
                "model again"
            )
        return
    pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"{name} has no {SAFE_WEIGHTS_NAME}, only {pickles[0]}: safetensors only, convert the weights"
        )
    raise ModelError(f"{name} has no weights: {SAFE_WEIGHTS_NAME} or {SAFE_WEIGHTS_INDEX_NAME} is needed")


def _check_hub(model: ModelConfig, source: ModelSource) -> None:
    try:
        found = any(
            has_file(source.path, name, revision=model.revision)
            for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
        )
    except (OSError, HTTPError) as error:
        raise ModelError(_hub_problem(model, error)) from error
    if not found:
        if constants.HF_HUB_OFFLINE:
            raise ModelError(_hub_problem(model, None))
        raise ModelError(
            f"model {model.path!r} is no local folder, and the hub did not show safetensors weights for it: "
            "check the name and the connection, name a revision that has them (revision: refs/pr/N), or convert the model "
            "(docs/paper.md) and give its folder"
        )


def config_problem(model: ModelConfig, source: ModelSource, error: Exception) -> str:
    """One line for a configuration that could not be read or built."""
    text = str(error)
    if "trust_remote_code" in text:
        return (
            f"model {model.path!r} comes with code of its own: set trust_remote_code: true if you trust it, "
            "or choose another model"
        )
    if isinstance(error, (OSError, HTTPError)) and not source.local:
        return _hub_problem(model, error)
    return f"the configuration of model {model.path!r} cannot be read: {first_line(error)}"


def _hub_problem(model: ModelConfig, error: Exception | None) -> str:
    cause = error.__cause__ if error is not None else None
    if isinstance(cause, GatedRepoError):
        return f"model {model.path!r} is gated: ask for access on its hub page, then run hf auth login"
    if isinstance(cause, RepositoryNotFoundError):
        return (
            f"model {model.path!r} is neither a local folder nor a model on the hub: check the name "
            "(owner/name)"
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"model {model.path!r} is neither a local folder nor in the hub cache, and the hub is off "
            "(HF_HUB_OFFLINE=1): give a local folder, or unset it"
        )
    reason = first_line(error) if error is not None else "no answer"
    return f"model {model.path!r} is no local folder and cannot be reached on the hub: {reason}"


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first non-empty line of an error's text, cut to ``limit`` characters, or its class name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:limit]
