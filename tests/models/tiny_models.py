"""Tiny random models and requests, and the plain forward pass that results are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ensemw2s.models.scoring import ScoreRequest

VOCAB_SIZE = 120

SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
GROUPED = {**SMALL, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128}


def llama_config(**changes: Any) -> LlamaConfig:
    settings: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        # Far larger than usual, so that distributions are peaked and a wrong mask or position shows.
        "initializer_range": 0.3,
        "eos_token_id": 0,
        "bos_token_id": None,
        "pad_token_id": None,
        "tie_word_embeddings": True,
    }
    return LlamaConfig(**{**settings, **changes})


def random_model(config: Any, seed: int = 0) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def random_requests(
    seed: int,
    n: int,
    *,
    vocab_size: int = VOCAB_SIZE,
    longest_prompt: int = 40,
    longest: int = 9,
    most: int = 6,
) -> list[ScoreRequest]:
    """Prompts and continuations of wildly varying lengths and numbers, down to a single one of one token."""
    rng = np.random.default_rng(seed)

    def tokens(length: int) -> np.ndarray:
        return rng.integers(0, vocab_size, length).astype(np.int32)

    requests = []
    for _ in range(n):
        n_texts = int(rng.integers(1, most + 1))
        texts = tuple(tokens(int(rng.choice([1, rng.integers(1, longest + 1)]))) for _ in range(n_texts))
        requests.append(ScoreRequest(tokens(int(rng.integers(1, longest_prompt + 1))), texts))
    return requests


def next_logits(model: Any, ids: np.ndarray) -> torch.Tensor:
    """(V,) float32 logits after one unpadded sequence, by nothing but the plain model."""
    with torch.inference_mode():
        return model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, -1].float()


def write_gguf(model: Any, tokenizer: Any, path: Path) -> None:
    """The Llama model as an unquantized GGUF file, as llama.cpp's converter lays it out."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if t in ("<end>", "<pad>") else 1 for t in tokens])
    writer.add_token_merges([" ".join(m) for m in state["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)

    def paired(weight: np.ndarray, heads: int) -> np.ndarray:
        # GGUF keeps the two halves of each rotary pair side by side.
        return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)

    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    weights = {k: v.detach().numpy() for k, v in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for i in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = weights[f"model.layers.{i}.{ours}.weight"]
            if theirs == "attn_q":
                weight = paired(weight, config.num_attention_heads)
            if theirs == "attn_k":
                weight = paired(weight, config.num_key_value_heads)
            writer.add_tensor(f"blk.{i}.{theirs}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def all_logits(model: Any, seed: int = 0) -> torch.Tensor:
    """(2, 11, V) logits of two fixed random texts."""
    ids = torch.from_numpy(np.random.default_rng(seed).integers(0, VOCAB_SIZE, (2, 11)))
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits
