"""What can be reached: the Hugging Face hub, its cache, and the models and data of a configuration."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from ensemw2s.config import (
    BuiltinSource,
    ExperimentConfig,
    FileSource,
    HubSource,
    ModelConfig,
    ReasoningGymSource,
    Source,
)
from ensemw2s.config.uris import shown
from ensemw2s.doctor.check import Check
from ensemw2s.errors import UserError
from ensemw2s.runs.remote import Remote

_HUB_SECONDS = 3.0


def check_hub() -> Check:
    """Whether the hub answers; asked once, for a few seconds."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Check("hub", "ok", "HF_HUB_OFFLINE is set: only local and cached models and data are used")
    endpoint = constants.ENDPOINT
    remedy = "use local models and data, or set HF_ENDPOINT, HTTPS_PROXY or HF_HUB_OFFLINE=1"
    if not endpoint.startswith(("https://", "http://")):
        return Check("hub", "warn", f"HF_ENDPOINT {endpoint!r} is no web address", remedy)
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=_HUB_SECONDS):
            return Check("hub", "ok", f"{endpoint} answers")
    except urllib.error.HTTPError as error:
        return Check("hub", "ok", f"{endpoint} answers ({error.code})")
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        return Check("hub", "warn", f"{endpoint} does not answer: {reason}", remedy)


def check_cache() -> Check:
    """The cache of models and data from the hub."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    if not folder.is_dir():
        return Check("hub cache", "ok", f"{folder} is not there yet")
    models, data = (len(list(folder.glob(f"{kind}--*"))) for kind in ("models", "datasets"))
    detail = f"{folder} holds {models} models and {data} data sets"
    if not os.access(folder, os.W_OK):
        return Check("hub cache", "warn", f"{detail}, and cannot be written", "set HF_HOME to another folder")
    return Check("hub cache", "ok", detail)


def check_storage(uri: str) -> Check:
    """Whether the storage of ``runs_dir`` answers this machine; nothing is written there."""
    try:
        Remote(uri)
    except UserError as error:
        return Check("storage", "bad", str(error))
    return Check("storage", "ok", f"{shown(uri)} answers")


def check_config(config: ExperimentConfig) -> list[Check]:
    """The models and the data that a configuration names."""
    models = {f"weak model {i}": model for i, model in enumerate(config.weak.models)}
    models["strong model"] = config.strong.model
    data = config.data
    named = {"pool": data.pool, "easy": data.easy, "hard": data.hard, "test": data.test, **data.extra_tests}
    checks = [_check_model(name, model) for name, model in models.items()]
    return checks + [_check_source(f"data {name}", source) for name, source in named.items() if source]


def _check_model(name: str, model: ModelConfig) -> Check:
    from ensemw2s.models.facts import inspect_model

    try:
        facts = inspect_model(model)
    except UserError as error:
        return Check(
            name, "bad", str(error), "correct path in the configuration, or make the model reachable"
        )
    size = (
        f"{facts.n_parameters / 1e6:.0f} M parameters, {facts.n_layers} layers, vocabulary {facts.vocab_size}"
    )
    return Check(name, "ok", f"{facts.display_name}: {facts.architecture}, {size}")


def _check_source(name: str, source: Source) -> Check:
    from ensemw2s.data.sources import load_source

    try:
        hub = _on_hub(source)
        if hub is not None and not _is_offline():
            return _ask_hub(name, hub)
        if isinstance(source, ReasoningGymSource):
            # One question shows that the task and its options are known.
            load_source(source.model_copy(update={"size": 1, "distractors": 0}))
            return Check(name, "ok", f"reasoning-gym task {source.task}, {source.size} questions to generate")
        samples = load_source(source)
    except UserError as error:
        return Check(name, "bad", str(error), "correct the source in the configuration")
    where = source.path
    if isinstance(source, BuiltinSource):
        where = source.name if source.path is None else f"{source.name} in {source.path}"
    return Check(name, "ok", f"{where}: {len(samples)} samples")


def _on_hub(source: Source) -> HubSource | None:
    """What is to be asked of the hub; None for what lies on this machine."""
    from ensemw2s.data.builtin import hub_source

    if isinstance(source, FileSource | ReasoningGymSource):
        return None
    if isinstance(source, BuiltinSource):
        return None if source.path is not None else hub_source(source)
    return None if Path(source.path).expanduser().exists() else source


def _ask_hub(name: str, hub: HubSource) -> Check:
    """Whether the hub has the data set; nothing is downloaded."""
    from huggingface_hub import HfApi

    try:
        HfApi().dataset_info(hub.path, revision=hub.revision, timeout=_HUB_SECONDS)
    # The client raises the errors of its HTTP library, which changes with its version.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Check(
            name, "bad", f"{hub.path} is not reached: {first}", "connect, or give a local copy as path"
        )
    return Check(name, "ok", f"{hub.path} is on the hub")


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
