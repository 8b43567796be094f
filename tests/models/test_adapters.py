"""Members on one base: what each of them computes is what it computes alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from ensemw2s.config import LoraConfig, ModelConfig
from ensemw2s.errors import ArtifactError, ModelError
from ensemw2s.models import scoring
from ensemw2s.models.adapters import SharedBase, is_plain_adapter, load_shared
from ensemw2s.models.decoding import StepDecoder
from ensemw2s.models.lanes import LaneRows, Lanes, Move
from ensemw2s.models.loading import load_model
from ensemw2s.models.member_scores import score_together
from ensemw2s.models.scoring import score
from ensemw2s.models.storage import load_saved, save_model
from tests.models.tiny_models import VOCAB_SIZE, all_logits, random_model, random_requests

#: Ranks, places and scales differ; the same base.
LORAS = (
    LoraConfig(rank=4),
    LoraConfig(rank=2, alpha=3.0),
    LoraConfig(rank=4, target_modules=("q_proj", "down_proj")),
)


def write_members(base: ModelConfig, tokenizer: Any, folder: Path, loras: Any = LORAS) -> list[Path]:
    """Adapters with large random weights, saved as members are."""
    folders = []
    for t, lora in enumerate(loras):
        config = base.model_copy(update={"lora": lora})
        model = load_model(config, device="cpu", for_training=True, dtype=torch.float32)
        generator = torch.Generator().manual_seed(t)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.2, generator=generator)
        folders.append(folder / f"{t:02d}")
        save_model(model, tokenizer, folders[-1], base=config)
    return folders


@pytest.fixture(scope="module")
def folders(
    tiny: Callable[..., ModelConfig], tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    return write_members(tiny(), tokenizer, tmp_path_factory.mktemp("members"))


@pytest.fixture(scope="module")
def shared(folders: list[Path], tiny: Callable[..., ModelConfig]) -> SharedBase:
    found = load_shared(folders, device="cpu", dtype=torch.float32, base=tiny())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def apart(folders: list[Path]) -> list[Any]:
    """The same members, each in a base of its own."""
    return [load_saved(f, device="cpu", merge=False) for f in folders]


def test_one_member_every_member_and_any_mixture(shared: SharedBase, apart: list[Any]) -> None:
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, VOCAB_SIZE, (2, 11)))
    expected = [all_logits(model) for model in apart]
    assert (expected[0] - expected[1]).abs().max() > 0.5
    with torch.inference_mode():
        for t, own in enumerate(expected):
            torch.testing.assert_close(shared.member(t)(input_ids=ids).logits, own, rtol=0, atol=2e-5)
        every = shared.every()(input_ids=ids.repeat_interleave(3, dim=0)).logits
        torch.testing.assert_close(every, torch.stack(expected, dim=1).flatten(0, 1), rtol=0, atol=2e-5)
        mixed = shared.every()
        mixed.adapters = np.array([2, 2, 0, 1])
        rows = torch.tensor([0, 1, 1, 0])
        got = mixed(input_ids=ids[rows]).logits
    wanted = torch.stack([expected[t][row] for t, row in zip(mixed.adapters, rows, strict=True)])
    torch.testing.assert_close(got, wanted, rtol=0, atol=2e-5)


def test_memory_is_that_of_one_base(shared: SharedBase, apart: list[Any]) -> None:
    base = sum(p.nbytes for p in apart[0].get_base_model().parameters() if not p.requires_grad)
    lora = sum(p.nbytes for m in apart for n, p in m.named_parameters() if "lora_" in n)
    one = sum(p.nbytes for n, p in apart[0].named_parameters() if "lora_" not in n)
    assert one <= shared.bytes() <= one + 2 * lora  # lower ranks are filled up
    assert base > 0


@pytest.mark.parametrize("method", ["tree", "rows"])
@pytest.mark.parametrize("batch_tokens", [40, 4096])
def test_scores(
    shared: SharedBase,
    apart: list[Any],
    method: Any,
    batch_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = random_requests(5, 7)
    if batch_tokens == 40:
        # A text of more tokens than the head takes is read in parts.
        monkeypatch.setattr(scoring, "MAX_HEAD_VALUES", 12 * VOCAB_SIZE)
    together = score_together(shared, requests, batch_tokens=batch_tokens, method=method)
    for own, model in zip(together, apart, strict=True):
        alone = score(model, requests)
        np.testing.assert_allclose(own.logprobs, alone.logprobs, atol=2e-5)
        np.testing.assert_array_equal(own.hits, alone.hits)
        np.testing.assert_array_equal(own.offsets, alone.offsets)
    assert len({tuple(own.logprobs) for own in together}) == 3


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000))
def test_lanes_are_decoders_of_their_own(shared: SharedBase, apart: list[Any], seed: int) -> None:
    """Rows enter and leave; members that step, that stay behind, and that begin anew: always as if alone."""
    rng = np.random.default_rng(seed)
    lanes = Lanes(shared, pad_id=0)
    rows = [LaneRows(lanes, t) for t in range(3)]
    single = [StepDecoder(model, pad_id=0) for model in apart]
    lockstep = bool(rng.integers(2))
    for _ in range(7):
        stepping = [0, 1, 2] if lockstep else [t for t in range(3) if rng.random() < 0.7]
        choices = np.random.default_rng(rng.integers(99))
        moves = {}
        for t in stepping:
            own = choices if not lockstep else np.random.default_rng(7 + single[t].batch_size)
            if not lockstep and own.random() < 0.15:
                rows[t] = LaneRows(lanes, t)
                single[t].keep(np.zeros(0, dtype=np.int64))
            n = single[t].batch_size
            keep = own.permutation(n)[: int(own.integers(0, n + 1))] if n and own.random() < 0.5 else None
            count = n if keep is None else len(keep)
            prompts = [
                own.integers(0, VOCAB_SIZE, own.integers(1, 9)).astype(np.int32)
                for _ in range(int(own.integers(0, 3)) or (count == 0))
            ]
            moves[t] = Move(keep, own.integers(0, VOCAB_SIZE, count), prompts)
            if keep is not None:
                single[t].keep(keep)
            if count:
                single[t].advance(moves[t].tokens)
            if prompts:
                single[t].enter(prompts)
        lanes.step(moves)
        for t in range(3):
            n = single[t].batch_size
            if n == 0:
                continue
            every = np.arange(n)
            np.testing.assert_allclose(rows[t].full(every), single[t].full(every), atol=2e-6)
            got, alone = rows[t].top_k(5), single[t].top_k(5)
            np.testing.assert_array_equal(got.ids, alone.ids)
            np.testing.assert_allclose(got.probs, alone.probs, atol=2e-6)
            some = rng.integers(0, n, 2)
            np.testing.assert_allclose(
                rows[t].exact(some, some[:, None]), single[t].exact(some, some[:, None]), atol=2e-6
            )


def test_steps_that_do_not_fit(shared: SharedBase) -> None:
    lanes = Lanes(shared, pad_id=0)
    rows = LaneRows(lanes, 1)
    with pytest.raises(ValueError, match="holds no rows"):
        rows.top_k(1)
    lanes.step({1: Move(None, np.zeros(0, dtype=np.int32), [np.array([3])])})
    with pytest.raises(ValueError, match="2 tokens came for 1 rows of member 1"):
        lanes.step({1: Move(None, np.array([1, 2]), [])})


def test_adapters_on_transposed_layers(tokenizer: Any, tmp_path: Path) -> None:
    """GPT-2 keeps its matrices the other way round."""
    config = GPT2Config(
        vocab_size=VOCAB_SIZE, n_embd=16, n_layer=1, n_head=2, bos_token_id=None, eos_token_id=0
    )
    random_model(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    base = ModelConfig(path=str(tmp_path / "gpt2"))
    folders = write_members(base, tokenizer, tmp_path, LORAS[:2])
    shared = load_shared(folders, device="cpu", dtype=torch.float32, base=base)
    assert shared is not None
    for t, folder in enumerate(folders):
        requests = random_requests(t, 3)
        own = score(shared.member(t), requests).logprobs
        np.testing.assert_allclose(own, score(load_saved(folder, device="cpu"), requests).logprobs, atol=2e-5)


def test_what_cannot_share(
    folders: list[Path], tiny: Callable[..., ModelConfig], tokenizer: Any, tmp_path: Path, shared: SharedBase
) -> None:
    assert is_plain_adapter(folders[0])
    assert not is_plain_adapter(tmp_path)
    odd = tmp_path / "odd"
    odd.mkdir()
    settings = (folders[0] / "adapter_config.json").read_text()
    (odd / "adapter_config.json").write_text(settings.replace('"use_dora": false', '"use_dora": true'))
    assert not is_plain_adapter(odd)
    on_words = write_members(
        tiny(), tokenizer, tmp_path, [LoraConfig(rank=2, target_modules=("embed_tokens",))]
    )
    assert load_shared(on_words, device="cpu", dtype=torch.float32, base=tiny()) is None
    with pytest.raises(ArtifactError, match="no adapter_model"):
        load_shared([folders[0], odd], device="cpu", dtype=torch.float32, base=tiny())
    with pytest.raises(ValueError, match="not trained"):
        shared.member(0).train()
    layer = shared.base.model.layers[0].mlp.down_proj
    with pytest.raises(ModelError, match=r"runtime\.share_bases"):
        layer(torch.zeros(3, 48))
