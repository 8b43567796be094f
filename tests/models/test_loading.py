import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ensemw2s.config import LoraConfig, ModelConfig
from ensemw2s.data.encoding import tokenizer_fingerprint
from ensemw2s.errors import ModelError
from ensemw2s.models.layers import select_layers
from ensemw2s.models.loading import eos_ids, load_model, load_tokenizer
from tests.models.tiny_models import all_logits, llama_config, random_model

Make = Callable[..., ModelConfig]


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def adapters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def test_loads_the_weights(tiny: Make, llama: Any) -> None:
    model = load_model(tiny(), device="cpu")
    assert torch.equal(all_logits(model), all_logits(llama))
    assert not model.training
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_number_format(tiny: Make) -> None:
    assert load_model(tiny(dtype="bfloat16"), device="cpu").dtype == torch.bfloat16
    assert load_model(tiny(dtype="bfloat16"), device="cpu", dtype=torch.float32).dtype == torch.float32


def test_leaves_layers_out(tiny: Make, folder: Path) -> None:
    model = load_model(tiny(drop_layers="1-2"), device="cpu")
    expected = random_model(llama_config())
    select_layers(expected, (0, 3))
    assert torch.equal(all_logits(model), all_logits(expected))


def test_gguf_file_gives_the_same_model(gguf_path: Path, llama: Any) -> None:
    model = load_model(ModelConfig(path=str(gguf_path)), device="cpu")
    assert torch.equal(all_logits(model), all_logits(llama))
    assert getattr(model, "hf_quantizer", None) is None
    assert not hasattr(model.config, "quantization_config")


def test_gguf_file_gives_the_same_tokenizer(gguf_path: Path, tiny: Make) -> None:
    ours, other = load_tokenizer(tiny()), load_tokenizer(ModelConfig(path=str(gguf_path)))
    text = "Question: who is the moon?\nAnswer: fire"
    assert (
        other(text, add_special_tokens=False)["input_ids"]
        == ours(text, add_special_tokens=False)["input_ids"]
    )
    assert other.eos_token_id == ours.eos_token_id


def test_sampling_settings_do_not_leak(copy: Path) -> None:
    path = copy / "generation_config.json"
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.9,
        "repetition_penalty": 1.3,
        "eos_token_id": [7, 3],
    }
    path.write_text(json.dumps(settings))
    model = load_model(ModelConfig(path=str(copy)), device="cpu")
    left = model.generation_config.to_diff_dict()
    assert not {"do_sample", "temperature", "top_p", "repetition_penalty"} & set(left)
    assert eos_ids(model, load_tokenizer(ModelConfig(path=str(copy)))) == (0, 3, 7)


def test_training_mode_and_checkpointing(tiny: Make) -> None:
    model = load_model(tiny(gradient_checkpointing=True), device="cpu", for_training=True)
    assert model.training
    assert model.is_activation_checkpointing
    assert all(p.requires_grad for p in model.parameters())
    ids = torch.arange(2, 12)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    plain = load_model(tiny(), device="cpu", for_training=True)
    assert not plain.is_activation_checkpointing
    plain(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_alone_are_trained(tiny: Make, llama: Any, checkpointing: bool) -> None:
    config = tiny(lora=LoraConfig(rank=4), dtype="bfloat16", gradient_checkpointing=checkpointing)
    model = load_model(config, device="cpu", for_training=True)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(adapters(model))
    assert {p.dtype for p in adapters(model).values()} == {torch.float32}
    assert len(trained) == 2 * 7 * 4  # A and B of seven linear maps in four layers, the head left out
    ids = torch.arange(2, 12)[None]
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None for p in adapters(model).values())


def test_adapters_start_as_the_seed_says_and_change_nothing_yet(tiny: Make, llama: Any) -> None:
    config = tiny(lora=LoraConfig(rank=4, target_modules=("q_proj", "v_proj")))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    one, same, other = (load_model(config, device="cpu", for_training=True, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    a, b, c = (adapters(m) for m in (one, same, other))
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)
    torch.testing.assert_close(all_logits(one.eval()), all_logits(llama), atol=1e-5, rtol=0)


def test_adapters_are_for_training(tiny: Make) -> None:
    assert not adapters(load_model(tiny(lora=LoraConfig()), device="cpu"))


def test_adapter_targets_that_do_not_exist(tiny: Make) -> None:
    with pytest.raises(ModelError, match=r"lora.target_modules \('nope',\) do not fit"):
        load_model(tiny(lora=LoraConfig(target_modules=("nope",))), device="cpu", for_training=True)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    path = copy / "model.safetensors"
    weights = load_file(path)
    weights.pop("model.layers.2.mlp.up_proj.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 missing keys, for example model.layers.2.mlp.up_proj.weight"):
        load_model(ModelConfig(path=str(copy)), device="cpu")


def test_weights_of_another_shape(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(ModelError, match="weights of model") as caught:
        load_model(ModelConfig(path=str(copy)), device="cpu")
    assert "\n" not in str(caught.value)


def test_truncated_weights(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"weights of model .* cannot be loaded") as caught:
        load_model(ModelConfig(path=str(copy)), device="cpu")
    assert "\n" not in str(caught.value)


def test_broken_gguf(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"not a gguf file at all, but long enough to be read as one")
    with pytest.raises(ModelError, match="configuration of model"):
        load_model(ModelConfig(path=str(path)), device="cpu")


def test_tokenizer(tiny: Make) -> None:
    tokenizer = load_tokenizer(tiny())
    assert tokenizer.is_fast
    assert tokenizer.eos_token_id == 0
    text = "Question: what is hot?\nAnswer: fire"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_without_end_of_text(copy: Path) -> None:
    path = copy / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("eos_token")
    path.write_text(json.dumps(settings))
    with pytest.raises(ModelError, match="has no end-of-text token"):
        load_tokenizer(ModelConfig(path=str(copy)))


def test_no_tokenizer(copy: Path) -> None:
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer of model") as caught:
        load_tokenizer(ModelConfig(path=str(copy)))
    assert "\n" not in str(caught.value)


def test_fingerprints_tell_tokenizers_apart(tiny: Make, copy: Path) -> None:
    one = tokenizer_fingerprint(load_tokenizer(tiny()))
    padded = load_tokenizer(tiny())
    padded(["a", "Question"], padding=True)  # switches padding on in the backend, which changes no ids
    assert tokenizer_fingerprint(padded) == one
    path = copy / "tokenizer.json"
    state = json.loads(path.read_text())
    a, b = list(state["model"]["vocab"])[10:12]
    vocab = state["model"]["vocab"]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(state))
    assert tokenizer_fingerprint(load_tokenizer(ModelConfig(path=str(copy)))) != one


def test_plain_attention_where_the_fused_one_is_slow(tiny: Make, tmp_path: Path) -> None:
    """Training in bfloat16 on a processor: the same model, and nothing of it in what is saved."""
    plain = load_model(tiny(dtype="bfloat16"), device="cpu", dtype=torch.float32, for_training=True)
    fused = load_model(tiny(), device="cpu", for_training=True)
    assert (plain.config._attn_implementation, fused.config._attn_implementation) == ("eager", "sdpa")
    torch.testing.assert_close(all_logits(plain), all_logits(fused), atol=1e-5, rtol=1e-5)
    plain.save_pretrained(tmp_path)
    assert load_model(ModelConfig(path=str(tmp_path)), device="cpu").config._attn_implementation == "sdpa"
