"""Tiny random models and a tiny byte-level BPE tokenizer, built offline and saved once for all tests here."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when huggingface_hub is imported, which the imports below do.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ensemw2s.config import ModelConfig
from ensemw2s.models.scoring import ScoreRequest
from tests.models.tiny_models import VOCAB_SIZE, llama_config, random_model, random_requests, write_gguf

TEXT = [
    "Question: what is the color of the sky?\nAnswer: blue",
    "Question: who is the brother of the mother of Anna?\nAnswer: uncle",
    "The sun is a star, and the moon is not; water is wet and fire is hot.",
]


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The tolerances of these tests hold for float32 on one thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=VOCAB_SIZE, special_tokens=["<end>", "<pad>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>", pad_token="<pad>")


@pytest.fixture(scope="session")
def llama() -> Any:
    """The model that is in the folder of the same name; not to be changed."""
    return random_model(llama_config())


@pytest.fixture(scope="session")
def folder(llama: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny-llama")
    llama.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny(folder: Path) -> Callable[..., ModelConfig]:
    def make(**changes: Any) -> ModelConfig:
        return ModelConfig(path=str(folder), **changes)

    return make


@pytest.fixture(scope="session")
def gguf_path(llama: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(llama, tokenizer, path)
    return path


@pytest.fixture(scope="module")
def requests() -> list[ScoreRequest]:
    return random_requests(seed=1, n=12)
