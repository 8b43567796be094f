"""The folder of an exported ensemble: config.json, the tokenizer, and members/NN/, each an ordinary model."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HTTPError, StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GenerationConfig

from ensemw2s.errors import ModelError
from ensemw2s.hf.configuration import EnsembleConfig, check_weights
from ensemw2s.models.files import first_line

MEMBERS = "members"

_HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")
#: Arguments of `from_pretrained` that concern the call and not the members.
_OWN = ("adapter_kwargs", "config", "generation_config", "output_loading_info", "subfolder")
_UNREADABLE = (OSError, HTTPError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError)


def member_name(index: int) -> str:
    """Folder of a member inside the exported one."""
    return f"{MEMBERS}/{index:02d}"


@dataclass(frozen=True)
class LoadedMembers:
    """What a folder holds.

    Attributes:
        config: of the ensemble.
        members: T models.
        generation_config: the ensemble's.
        info: transformers' report on the weights, names with the member's prefix.
    """

    config: EnsembleConfig
    members: list[Any]
    generation_config: GenerationConfig
    info: dict[str, Any] = field(default_factory=dict)


def load_members(folder: str | os.PathLike[str], **kwargs: Any) -> LoadedMembers:
    """Read an exported folder.

    Args:
        folder: a local folder, or a name on the hub.
        kwargs: of ``from_pretrained``; what is not about the hub or the call goes to every member.

    Raises:
        ModelError: it holds no ensemble, or one that is not whole.
    """
    name = os.fspath(folder)
    hub = {key: kwargs[key] for key in _HUB if kwargs.get(key) is not None}
    rest = {
        key: value
        for key, value in kwargs.items()
        if value is not None and key not in (*_HUB, *_OWN) and not key.startswith("_")
    }
    if "state_dict" in rest:
        raise ValueError(
            "an ensemble is loaded from its files: leave out state_dict, or call load_state_dict"
        )
    inside = str(kwargs.get("subfolder") or "").strip("/")
    config = kwargs.get("config")
    config = read_ensemble_config(name, inside, hub) if config is None else copy.deepcopy(config)
    check_weights(config.alphas, len(config.members))
    if config._attn_implementation is not None:
        rest.setdefault("attn_implementation", config._attn_implementation)
    members, info = [], _no_report()
    for i in range(len(config.members)):
        path = f"{inside}/{member_name(i)}" if inside else member_name(i)
        try:
            member, report = AutoModelForCausalLM.from_pretrained(
                name, subfolder=path, output_loading_info=True, **hub, **rest
            )
        except _UNREADABLE as error:
            raise ModelError(f"member {path} of {name} cannot be loaded: {first_line(error)}") from error
        for kind in info:
            info[kind] |= {f"{MEMBERS}.{i}.{key}" for key in map(str, report.get(kind) or ())}
        members.append(member)
    # transformers fills in missing weights at random and only prints a report about it.
    for kind in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info[kind]:
            raise ModelError(
                f"the weights in {name} do not fit its members' config.json: {len(info[kind])} "
                f"{kind.replace('_', ' ')}, for example {sorted(info[kind])[0]}: export the run again"
            )
    config.name_or_path = name
    given = kwargs.get("generation_config")
    generation = given if given is not None else _generation_config(name, inside, hub, config)
    return LoadedMembers(config, members, generation, info)


def read_ensemble_config(name: str, subfolder: str, hub: Mapping[str, Any]) -> EnsembleConfig:
    """config.json of an exported folder; ModelError where it is none."""
    advice = "give a folder that `ensemw2s export RUN --output FOLDER` wrote"
    try:
        values, _ = EnsembleConfig.get_config_dict(name, subfolder=subfolder, **hub)
    except _UNREADABLE as error:
        # A name with one slash may be one of the hub; what else is not there is a folder with a typing error in it.
        here = os.path.isdir(name) or (name.count("/") == 1 and not name.startswith((".", "/", "~")))
        reason = first_line(error) if here else "there is no such folder"
        raise ModelError(f"{name} is no exported ensemble ({reason}): {advice}") from error
    if values.get("model_type") != EnsembleConfig.model_type:
        kind = values.get("model_type", "nothing")
        raise ModelError(f"{name} is no exported ensemble, its config.json says model_type {kind}: {advice}")
    config: EnsembleConfig = EnsembleConfig.from_dict(values)
    return config


def save_members(
    model: Any,
    folder: str | os.PathLike[str],
    state_dict: Mapping[str, torch.Tensor] | None = None,
    **kwargs: Any,
) -> None:
    """Write an ensemble, as :meth:`ensemw2s.hf.modeling.EnsembleForCausalLM.save_pretrained`."""
    target = Path(folder)
    for i, member in enumerate(model.members):
        prefix = f"{MEMBERS}.{i}."
        own = None
        if state_dict is not None:
            own = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        place = target / member_name(i)
        place.mkdir(parents=True, exist_ok=True)
        # A file that is also known by another name (a hard link into a run directory) must not be written through.
        for old in place.glob("*.safetensors"):
            old.unlink()
        member.save_pretrained(place, state_dict=own, **kwargs)
    config = model.config
    config.members = [describe(member.config) for member in model.members]
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)


def describe(config: Any) -> dict[str, Any]:
    """A member's configuration as it stands in the ensemble's: without the path that it came from."""
    values: dict[str, Any] = config.to_diff_dict()
    for name in ("_name_or_path", "transformers_version"):
        values.pop(name, None)
    return values


def _no_report() -> dict[str, Any]:
    return {kind: set() for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")}


def _generation_config(
    name: str, subfolder: str, hub: Mapping[str, Any], config: EnsembleConfig
) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(name, subfolder=subfolder, **hub)
    except OSError:
        # As transformers: the file is optional.
        return GenerationConfig.from_model_config(config)
