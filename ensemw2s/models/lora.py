"""New low-rank adapters on a model."""

from __future__ import annotations

from typing import Any

import torch

from ensemw2s.config import LoraConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.files import first_line
from ensemw2s.models.quiet import without_reports


def with_adapters(model: Any, lora: LoraConfig, name: str, seed: int = 0) -> Any:
    """The model with new adapters (Hu et al. 2021, arXiv 2106.09685) as peft wraps it; also on the meta device, to be counted.

    Args:
        model: a causal language model, which is changed.
        lora: rank, scale and places.
        name: what messages call it.
        seed: of the adapters' first weights.

    Raises:
        ModelError: the model has no such modules.
    """
    # peft is a second of import time that full fine-tuning does not need.
    import peft

    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules
        if isinstance(lora.target_modules, str)
        else list(lora.target_modules),
    )
    # Drawn on the CPU before the model moves, so that every device starts from the same adapters.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        try:
            with without_reports():
                return peft.get_peft_model(model, settings, autocast_adapter_dtype=True)
        except ValueError as error:
            raise ModelError(
                f"lora.target_modules {lora.target_modules!r} do not fit model {name!r}: {first_line(error)}"
            ) from error
