import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ensemw2s.config import LoraConfig, ModelConfig
from ensemw2s.data.encoding import tokenizer_fingerprint
from ensemw2s.errors import ArtifactError, ModelError, RunDirectoryError
from ensemw2s.models.facts import inspect_model
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.storage import convert_model, load_saved, read_base, save_model
from tests.models.tiny_models import all_logits

Make = Callable[..., ModelConfig]


def trained(config: ModelConfig, steps: int = 3, dtype: torch.dtype | None = None) -> Any:
    """A model whose weights have moved."""
    model = load_model(config, device="cpu", for_training=True, dtype=dtype)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    ids = torch.arange(3, 23)[None]
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_whole_model_comes_back_bit_for_bit(tiny: Make, tokenizer: Any, tmp_path: Path, dtype: Any) -> None:
    config = tiny(drop_layers="1", dtype=dtype)
    model = trained(config)
    save_model(model, tokenizer, tmp_path / "m", base=config)
    again = load_saved(tmp_path / "m", device="cpu")
    assert again.dtype == getattr(torch, dtype)
    assert not again.training
    # The same kernel for both: in bfloat16 training takes another one.
    model.set_attn_implementation(again.config._attn_implementation)
    assert torch.equal(all_logits(again), all_logits(model))
    assert not torch.equal(all_logits(again), all_logits(load_model(config, device="cpu")))
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert "lm_head.weight" not in load_file(tmp_path / "m" / "model.safetensors")


def test_what_is_written(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    config = tiny(drop_layers="0-1")
    folder = tmp_path / "members" / "01"
    save_model(load_model(config, device="cpu"), tokenizer, folder, base=config)
    names = {p.name for p in folder.iterdir()}
    assert {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "base.json",
    } <= names
    assert not list(folder.glob("*.bin"))
    assert [p.name for p in folder.parent.iterdir()] == ["01"]
    assert read_base(folder) == config
    assert tokenizer_fingerprint(load_tokenizer(ModelConfig(path=str(folder)))) == tokenizer_fingerprint(
        tokenizer
    )
    assert inspect_model(ModelConfig(path=str(folder))).n_layers == 2


def test_another_number_format_on_request(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    save_model(load_model(tiny(), device="cpu"), tokenizer, tmp_path / "m", base=tiny())
    assert load_saved(tmp_path / "m", device="cpu", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_weights_given_apart(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    model, other = load_model(tiny(), device="cpu"), trained(tiny())
    save_model(model, tokenizer, tmp_path / "m", base=tiny(), state_dict=other.state_dict())
    assert torch.equal(all_logits(load_saved(tmp_path / "m", device="cpu")), all_logits(other))


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj")])
def test_adapter_comes_back(tiny: Make, tokenizer: Any, tmp_path: Path, targets: Any) -> None:
    config = tiny(keep_layers="0,2,3", lora=LoraConfig(rank=4, target_modules=targets))
    model = trained(config)
    save_model(model, tokenizer, tmp_path / "m", base=config)
    names = {p.name for p in (tmp_path / "m").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base.json", "tokenizer.json"} <= names
    assert "model.safetensors" not in names
    apart = load_saved(tmp_path / "m", device="cpu", merge=False)
    assert torch.equal(all_logits(apart), all_logits(model))
    assert hasattr(apart, "peft_config")
    assert not apart.training
    merged = load_saved(tmp_path / "m", device="cpu")
    assert not hasattr(merged, "peft_config")
    torch.testing.assert_close(all_logits(merged), all_logits(model), atol=2e-5, rtol=0)
    assert (all_logits(merged) - all_logits(load_model(config, device="cpu"))).abs().max() > 0.1


def test_adapter_trains_on_after_it_was_saved(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    config = tiny(lora=LoraConfig(rank=2))
    model = trained(config)
    save_model(model, tokenizer, tmp_path / "m", base=config)
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)
    assert model.peft_config["default"].inference_mode is False


def test_adapter_whose_base_has_moved(tiny: Make, tokenizer: Any, tmp_path: Path, folder: Path) -> None:
    config = tiny(lora=LoraConfig(rank=2))
    model = trained(config)
    save_model(model, tokenizer, tmp_path / "m", base=config)
    stored = json.loads((tmp_path / "m" / "base.json").read_text())
    (tmp_path / "m" / "base.json").write_text(json.dumps({**stored, "path": "/gone"}))
    with pytest.raises(ModelError, match="model folder '/gone' does not exist"):
        load_saved(tmp_path / "m", device="cpu")
    found = load_saved(tmp_path / "m", device="cpu", base=tiny(), merge=False)
    assert torch.equal(all_logits(found), all_logits(model))


def test_adapter_that_does_not_fit(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    config = tiny(lora=LoraConfig(rank=2))
    save_model(trained(config), tokenizer, tmp_path / "m", base=config)
    with pytest.raises(ArtifactError, match="does not fit its base"):
        load_saved(tmp_path / "m", device="cpu", base=tiny(drop_layers="0"))
    path = tmp_path / "m" / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(sorted(weights)[0])
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="is on one side only"):
        load_saved(tmp_path / "m", device="cpu")
    path.unlink()
    with pytest.raises(ArtifactError, match=r"has no adapter_model\.safetensors"):
        load_saved(tmp_path / "m", device="cpu")


def test_relative_base_is_stored_as_absolute(
    folder: Path, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    config = ModelConfig(path=folder.name)
    save_model(load_model(config, device="cpu"), tokenizer, tmp_path / "m", base=config)
    assert read_base(tmp_path / "m").path == str(folder)


def test_empty_folder_is_fine_and_a_full_one_is_not(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    model = load_model(tiny(), device="cpu")
    (tmp_path / "m").mkdir()
    save_model(model, tokenizer, tmp_path / "m", base=tiny())
    with pytest.raises(RunDirectoryError, match="already holds something"):
        save_model(model, tokenizer, tmp_path / "m", base=tiny())


def test_nothing_is_left_of_a_save_that_fails(
    tiny: Make, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny(), device="cpu")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(RunDirectoryError, match=r"cannot be written to .*: No space left on device"):
        save_model(model, tokenizer, tmp_path / "m", base=tiny())
    assert list(tmp_path.iterdir()) == []


def test_remains_of_a_killed_save_do_not_matter(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / ".m.draft").mkdir()
    (tmp_path / ".m.draft" / "model.safetensors").write_bytes(b"half")
    save_model(load_model(tiny(), device="cpu"), tokenizer, tmp_path / "m", base=tiny())
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    load_saved(tmp_path / "m", device="cpu")


def test_no_saved_model(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ArtifactError, match=r"base\.json is missing or damaged"):
        load_saved(tmp_path, device="cpu")
    with pytest.raises(ArtifactError, match=r"base\.json is missing or damaged"):
        load_saved(folder, device="cpu")


def test_damaged_weights(tiny: Make, tokenizer: Any, tmp_path: Path) -> None:
    save_model(load_model(tiny(), device="cpu"), tokenizer, tmp_path / "m", base=tiny())
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ArtifactError, match="the saved model is damaged"):
        load_saved(tmp_path / "m", device="cpu")
    path.unlink()
    with pytest.raises(ArtifactError, match="the saved model is damaged"):
        load_saved(tmp_path / "m", device="cpu")


def test_converted_model_is_the_same_model(gguf_path: Path, tmp_path: Path) -> None:
    original = ModelConfig(path=str(gguf_path), drop_layers="1-2", lora=LoraConfig(rank=2))
    converted = convert_model(original, tmp_path / "plain")
    assert (converted.gguf_file, converted.drop_layers, converted.lora) == (None, "1-2", original.lora)
    assert converted.display_name == original.display_name
    a, b = (load_model(c, device="cpu") for c in (original, converted))
    assert torch.equal(all_logits(a), all_logits(b))
    tokenizers = [load_tokenizer(c) for c in (original, converted)]
    assert tokenizer_fingerprint(tokenizers[0]) == tokenizer_fingerprint(tokenizers[1])
    assert inspect_model(converted).n_parameters == inspect_model(original).n_parameters


def test_one_conversion_serves_models_without_different_layers(
    gguf_path: Path, tiny: Make, tmp_path: Path
) -> None:
    convert_model(ModelConfig(path=str(gguf_path), drop_layers="1"), tmp_path / "plain")
    written = (tmp_path / "plain" / "model.safetensors").stat().st_mtime_ns
    other = convert_model(ModelConfig(path=str(gguf_path)), tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").stat().st_mtime_ns == written
    assert inspect_model(other).n_layers == 4
    with pytest.raises(RunDirectoryError, match="already holds something"):
        convert_model(tiny(), tmp_path / "plain")
