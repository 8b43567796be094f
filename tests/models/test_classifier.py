"""A classification head: what it says in memory, on disk, and to transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.classifier import empty_classifier, replace_head
from ensemw2s.models.loading import load_model
from ensemw2s.models.storage import load_saved, save_model

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2},
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 2},
    "gpt_neox": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 2,
    },
    "opt": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "ffn_dim": 24,
        "num_attention_heads": 2,
        "word_embed_proj_dim": 16,
    },
}
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_says_the_same_also_to_transformers(
    family: str, tied: bool, tokenizer: Any, tmp_path: Path
) -> None:
    config = AutoConfig.for_model(
        family,
        vocab_size=40,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        tie_word_embeddings=tied,
        **FAMILIES[family],
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    embeddings = model.get_input_embeddings().weight.clone()
    replace_head(model, 3)
    assert torch.equal(model(IDS).logits, torch.zeros(2, 4, 3))
    torch.nn.init.normal_(model.get_output_embeddings().weight)
    expected = model(IDS).logits
    assert expected.abs().max() > 0.1
    assert torch.equal(model.get_input_embeddings().weight, embeddings)
    base = ModelConfig(path="tiny", head="classifier")
    save_model(model, tokenizer, tmp_path / "saved", base=base)
    again = load_saved(tmp_path / "saved", device="cpu", dtype=torch.float32)
    torch.testing.assert_close(again(IDS).logits, expected)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(theirs(IDS).logits, expected[:, -1])


def test_an_architecture_without_one_is_refused() -> None:
    with pytest.raises(ModelError, match="has no classification model in transformers"):
        empty_classifier(AutoConfig.for_model("codegen"))


def test_the_number_of_classes_must_be_known(tiny: Any) -> None:
    with pytest.raises(ValueError, match="number of its classes"):
        load_model(tiny(head="classifier"), device="cpu")
    model = load_model(tiny(head="classifier"), device="cpu", n_classes=2)
    assert model(IDS).logits.shape == (2, 4, 2)
