"""Saving fine-tuned models and loading them again: whole weights, or adapters and the name of their base."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ArtifactError, ModelError, RunDirectoryError
from ensemw2s.models.classifier import causal_form, sequence_classifier
from ensemw2s.models.device import resolve_dtype
from ensemw2s.models.files import check_weights_exist, first_line, read_config
from ensemw2s.models.loading import load_model, load_tokenizer, read_weights, ready_to_train, to_device
from ensemw2s.models.quiet import quiet, without_reports
from ensemw2s.models.sources import ModelSource, absolute_path
from ensemw2s.models.trainable import freeze

#: Written last into a saved folder's temporary copy: what it was trained from.
BASE_FILE = "base.json"

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
#: What peft writes beside an adapter.
ADAPTER_CONFIG = "adapter_config.json"


def save_model(
    model: Any,
    tokenizer: Any,
    folder: str | os.PathLike[str],
    *,
    base: ModelConfig,
    state_dict: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a model so that :func:`load_saved` gives it back bit for bit.

    A whole model is written in its own number format, layers left out staying out; a peft model is written as
    its adapter only. Both are what Hugging Face libraries read, with the tokenizer and ``base.json`` beside
    them. Everything goes to a temporary folder next to ``folder`` that takes its name at the end, so a crash
    leaves no half of a model.

    Args:
        model: ``PreTrainedModel`` or ``PeftModel``.
        tokenizer: its tokenizer.
        folder: must not exist, or be empty.
        base: the configuration that the model was loaded from; a local path is stored as an absolute one.
        state_dict: the weights where the model's own are not whole (sharded training).

    Raises:
        RunDirectoryError: the folder is not empty or cannot be written (permissions, full disk).
    """
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunDirectoryError(
            f"{target} already holds something: a model is saved into a new or an empty folder"
        )
    draft = target.with_name(f".{target.name}.draft")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        with quiet(True):
            if _is_adapter(model):
                _write_adapter(model, draft, state_dict)
            elif base.head == "classifier":
                sequence_classifier(model).save_pretrained(draft)
            else:
                model.save_pretrained(draft, state_dict=None if state_dict is None else dict(state_dict))
            tokenizer.save_pretrained(draft)
        (draft / BASE_FILE).write_text(absolute_path(base).model_dump_json(indent=2) + "\n")
        _flush(draft)
        draft.replace(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise RunDirectoryError(f"the model cannot be written to {target}: {reason}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_saved(
    folder: str | os.PathLike[str],
    *,
    device: str,
    dtype: torch.dtype | None = None,
    merge: bool = True,
    base: ModelConfig | None = None,
) -> Any:
    """Load what :func:`save_model` wrote, in evaluation mode.

    Args:
        folder: the saved model or adapter.
        device: cpu, cuda or cuda:N.
        dtype: number format; default: what the base's ``dtype`` means on this device.
        merge: add an adapter into the weights, which makes every forward pass faster. The sums are rounded in
            the weights' format, so results differ from the unmerged model's in the last digits (visibly in
            bfloat16); False keeps the adapter apart and gives the same results as the model that was saved.
        base: where the base of an adapter is now; default: where it was.

    Raises:
        ArtifactError: the folder was not written by :func:`save_model`, or is damaged.
        ModelError: the base of an adapter is gone.
    """
    target = Path(folder).absolute()
    origin = base if base is not None else read_base(target)
    wanted = dtype if dtype is not None else resolve_dtype(origin.dtype, device)
    if (target / ADAPTER_CONFIG).is_file():
        return _load_adapter(target, origin, device, wanted, merge)
    here = origin.model_copy(
        update={"path": str(target), "gguf_file": None, "drop_layers": None, "keep_layers": None}
    )
    source = ModelSource(str(target), None, local=True)
    try:
        check_weights_exist(here, source)
        config = read_config(here, source)
        if origin.head == "classifier":
            model = causal_form(
                read_weights(here, source, config, wanted, AutoModelForSequenceClassification)
            )
        else:
            model = read_weights(here, source, config, wanted)
    except ModelError as error:
        raise ArtifactError(f"the saved model is damaged: {error}") from error
    return to_device(model, device, str(target)).eval()


def load_to_train(folder: str | os.PathLike[str], base: ModelConfig, *, device: str) -> Any:
    """Load what :func:`save_model` wrote in float32, to be trained on; an adapter stays apart from its base and is what is trained.

    Args:
        folder: the saved model or adapter.
        base: what it was trained from, with ``trainable`` and ``gradient_checkpointing``.
        device: cpu, cuda or cuda:N.

    Raises:
        ArtifactError, ModelError: as :func:`load_saved`.
    """
    model = load_saved(folder, device=device, dtype=torch.float32, merge=False, base=base)
    if _is_adapter(model):
        model.peft_config[model.active_adapter].inference_mode = False
        model.set_adapter(model.active_adapter)
    else:
        freeze(model, base)
    return ready_to_train(model, base, device)


def read_base(folder: str | os.PathLike[str]) -> ModelConfig:
    """The configuration that a saved model was trained from.

    Raises:
        ArtifactError: the folder holds no readable ``base.json``.
    """
    path = Path(folder) / BASE_FILE
    try:
        return ModelConfig.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise ArtifactError(f"{folder} is no saved model: {BASE_FILE} is missing or damaged") from error


def convert_model(
    model: ModelConfig, folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
) -> ModelConfig:
    """Write a pretrained model as plain safetensors, and return the configuration that loads it from there.

    Worth it for GGUF files, whose loading takes many times longer, when they are loaded more than once. The
    folder holds all layers, so that models that leave out different ones share it; ``drop_layers`` and the
    rest of the configuration stay, and so does the name in tables. A folder that holds the model is used as it is.

    Raises:
        ModelError: as :func:`ensemw2s.models.loading.load_model`.
        RunDirectoryError: as :func:`save_model`; also where the folder holds another model.
    """
    whole = ModelConfig(
        path=model.path,
        revision=model.revision,
        gguf_file=model.gguf_file,
        trust_remote_code=model.trust_remote_code,
    )
    if not ((Path(folder) / BASE_FILE).is_file() and read_base(folder) == absolute_path(whole)):
        save_model(load_model(whole, device="cpu", dtype=dtype), load_tokenizer(whole), folder, base=whole)
    changes = {
        "path": str(Path(folder).absolute()),
        "label": model.display_name,
        "revision": None,
        "gguf_file": None,
    }
    return model.model_copy(update=changes)


def _is_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _write_adapter(model: Any, folder: Path, state_dict: Mapping[str, torch.Tensor] | None) -> None:
    import peft

    # Not model.save_pretrained: that asks the hub whether the vocabulary was resized, and writes a model
    # card.
    weights = peft.get_peft_model_state_dict(
        model, state_dict=None if state_dict is None else dict(state_dict), save_embedding_layers=False
    )
    save_file(
        {k: v.detach().cpu().contiguous() for k, v in weights.items()},
        folder / _ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    settings = model.peft_config[model.active_adapter]
    was, settings.inference_mode = settings.inference_mode, True
    try:
        settings.save_pretrained(folder)
    finally:
        settings.inference_mode = was


def _load_adapter(folder: Path, base: ModelConfig, device: str, dtype: torch.dtype, merge: bool) -> Any:
    model = load_peft({"default": folder}, base, device, dtype)
    return (model.merge_and_unload() if merge else model).eval()


def load_peft(adapters: Mapping[str, Path], base: ModelConfig, device: str, dtype: torch.dtype) -> Any:
    """A base with saved adapters, by name, as a ``PeftModel``; the first one is active.

    Raises:
        ArtifactError: an adapter is damaged, or does not fit the base.
        ModelError: the base cannot be loaded.
    """
    import peft

    for folder in adapters.values():
        if not (folder / _ADAPTER_WEIGHTS).is_file():
            raise ArtifactError(f"the saved adapter {folder} has no {_ADAPTER_WEIGHTS}")
    frozen = load_model(base.model_copy(update={"lora": None}), device=device, dtype=dtype)
    model: Any = None
    for name, folder in adapters.items():
        try:
            with without_reports():
                if model is None:
                    model = peft.PeftModel.from_pretrained(frozen, str(folder), name, is_trainable=False)
                else:
                    model.load_adapter(str(folder), name, is_trainable=False)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"the saved adapter {folder} does not fit its base {base.path!r}: {first_line(error)}"
            ) from error
        # peft leaves weights that the file lacks as they were initialized, and only warns.
        expected = set(peft.get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False))
        with safe_open(folder / _ADAPTER_WEIGHTS, framework="pt") as file:
            found = set(file.keys())
        if expected != found:
            odd = sorted(expected ^ found)[0]
            raise ArtifactError(
                f"the saved adapter {folder} does not fit its base {base.path!r}: {odd} is on one side only"
            )
    return model


def _flush(folder: Path) -> None:
    """Push the files to the disk before the folder gets its name: a power cut must not leave a named, empty
    model."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
