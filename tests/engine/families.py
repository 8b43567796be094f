"""Models and tokenizers of other families than the shared tiny ones, made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast


def other_clothes(source: Path, folder: Path, seed: int = 0) -> Path:
    """The same model and tokenizer with the ids of its vocabulary shuffled: another tokenizer, the same distributions."""
    model = AutoModelForCausalLM.from_pretrained(source)
    tokenizer = AutoTokenizer.from_pretrained(source)
    place = np.random.default_rng(seed).permutation(len(tokenizer))
    with torch.no_grad():
        model.get_input_embeddings().weight[torch.from_numpy(place)] = (
            model.get_input_embeddings().weight.clone()
        )
    assert model.config.tie_word_embeddings
    eos = int(place[tokenizer.eos_token_id])
    model.config.eos_token_id = model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)

    def move(parts: dict[str, Any]) -> None:
        parts["model"]["vocab"] = {piece: int(place[i]) for piece, i in parts["model"]["vocab"].items()}
        for added in parts["added_tokens"]:
            added["id"] = int(place[added["id"]])

    changed(tokenizer, move).save_pretrained(folder)
    return folder


def changed(tokenizer: Any, change: Callable[[dict[str, Any]], None]) -> PreTrainedTokenizerFast:
    """A tokenizer with its parts changed in place."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    change(parts)
    inner = Tokenizer.from_str(json.dumps(parts))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=tokenizer.eos_token)
