"""The ensemble as a causal language model of transformers: the vote's numbers, and `generate` unchanged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, OpenAIGPTConfig

import ensemw2s.hf
from ensemw2s.core.voting import mixture
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest
from ensemw2s.engine.decoding.worker import ModelPool
from ensemw2s.errors import ModelError
from ensemw2s.hf.configuration import EnsembleConfig
from ensemw2s.hf.files import describe
from ensemw2s.hf.modeling import EnsembleForCausalLM
from tests.engine.voting_models import ALPHAS, VOCAB, VOTING, llama, make, run, tokens_of, voters

EOS = (5, 17)
PROMPTS = ((3, 1, 4, 1, 5, 9, 2, 6), (27,), (18, 28, 18), (31, 41, 59, 26))


def ensemble(models: list[Any], alphas: tuple[float, ...] = ALPHAS) -> Any:
    config = EnsembleConfig(
        members=[describe(m.config) for m in models],
        alphas=list(alphas),
        vocab_size=VOCAB,
        eos_token_id=list(EOS),
        pad_token_id=0,
    )
    return EnsembleForCausalLM(config, models).eval()


@pytest.fixture(scope="module")
def voting() -> Any:
    ensemw2s.hf.register()
    return ensemble(voters())


@pytest.fixture(scope="module")
def alone() -> tuple[Any, Any]:
    """An ensemble of one, and the one."""
    model = voters()[1]
    return ensemble([model], (2.5,)), model


def left_padded(prompts: tuple[tuple[int, ...], ...] = PROMPTS) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    return {"input_ids": ids, "attention_mask": mask}


@torch.inference_mode()
def by_hand(models: list[Any], alphas: tuple[float, ...], ids: torch.Tensor) -> np.ndarray:
    """log of the mixture of the members' distributions, (b, s, V) float64, by the core's own function."""
    probs = [m(input_ids=ids).logits.double().softmax(-1).numpy() for m in models]
    return np.log(mixture(np.stack(probs), np.array(alphas)))


@torch.inference_mode()
def test_logits_are_the_log_of_the_mixture(voting: Any) -> None:
    ids = torch.tensor([PROMPTS[0], PROMPTS[0][::-1]])
    wanted = by_hand(voters(), ALPHAS, ids)
    output = voting(input_ids=ids)
    assert output.logits.dtype == torch.float32
    assert output.loss is None
    np.testing.assert_allclose(output.logits.numpy(), wanted, atol=2e-6)
    last = voting(input_ids=ids, logits_to_keep=2, use_cache=False)
    assert last.past_key_values is None
    np.testing.assert_allclose(last.logits.numpy(), wanted[:, -2:], atol=2e-6)
    some = voting(input_ids=ids, logits_to_keep=torch.tensor([1, 4])).logits
    np.testing.assert_allclose(some.numpy(), wanted[:, [1, 4]], atol=2e-6)
    logits, cache = voting(input_ids=ids, return_dict=False)
    assert logits.shape == (2, 8, VOCAB)
    assert cache.get_seq_length() == 8


@torch.inference_mode()
def test_a_member_that_does_not_know_logits_to_keep() -> None:
    model = ensemble(voters())
    model._known = [known - {"logits_to_keep"} for known in model._known]
    ids = torch.tensor([PROMPTS[0]])
    wanted = by_hand(voters(), ALPHAS, ids)
    for keep, part in ((0, slice(None)), (3, slice(-3, None)), (torch.tensor([2, 0]), [2, 0])):
        got = model(input_ids=ids, logits_to_keep=keep).logits.numpy()
        np.testing.assert_allclose(got, wanted[:, part], atol=2e-6)


def test_loss_is_the_mean_negative_log_probability_of_the_labels(voting: Any) -> None:
    ids = torch.tensor([PROMPTS[0]])
    labels = ids.clone()
    labels[0, :3] = -100
    output = voting(input_ids=ids, labels=labels)
    logs = by_hand(voters(), ALPHAS, ids)[0]
    wanted = -np.mean([logs[i - 1, ids[0, i]] for i in range(3, 8)])
    assert output.loss.item() == pytest.approx(wanted, abs=1e-5)
    output.loss.backward()
    grads = [m.get_input_embeddings().weight.grad for m in voting.members]
    assert [g is not None for g in grads] == [m in VOTING for m in range(4)]
    voting.zero_grad()


@torch.inference_mode()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side: str) -> None:
    # GPT-2's positions are learned: a row that does not begin at 0 shows.
    small = GPT2Config(
        vocab_size=VOCAB, n_positions=48, n_embd=16, n_layer=1, n_head=2, initializer_range=0.6
    )
    models = [make(small, 3), llama(4)]
    model = ensemble(models, (1.0, 2.0))
    batch = left_padded()
    if side == "right":
        batch = {name: value.flip(1) for name, value in batch.items()}
    logits = model(**batch).logits
    for row, mask in enumerate(batch["attention_mask"].bool()):
        wanted = by_hand(models, (1.0, 2.0), batch["input_ids"][row : row + 1, mask])[0]
        np.testing.assert_allclose(logits[row, mask].numpy(), wanted, atol=5e-6)


@torch.inference_mode()
def test_continuing_from_the_cache_is_reading_all_at_once(voting: Any) -> None:
    batch = left_padded()
    whole = voting(**batch).logits
    mask = batch["attention_mask"]
    first = voting(input_ids=batch["input_ids"][:, :5], attention_mask=mask[:, :5])
    rest = voting(
        input_ids=batch["input_ids"][:, 5:], attention_mask=mask, past_key_values=first.past_key_values
    )
    assert rest.past_key_values is first.past_key_values
    assert rest.past_key_values.get_seq_length() == 8
    assert rest.past_key_values.members[2] is None
    real = mask[:, 5:].bool()
    np.testing.assert_allclose(rest.logits[real].numpy(), whole[:, 5:][real].numpy(), atol=5e-6)


def test_what_an_ensemble_cannot_do_is_said(voting: Any) -> None:
    ids = torch.tensor([PROMPTS[2]])
    with pytest.raises(ValueError, match="needs input_ids"):
        voting(inputs_embeds=torch.zeros(1, 3, 16))
    with pytest.raises(ValueError, match="DynamicCache: leave it out"):
        voting(input_ids=ids, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="no hidden states"):
        voting(input_ids=ids, output_hidden_states=True)


def test_greedy_generation_is_the_voting_engine(voting: Any) -> None:
    """A left-padded batch, several end-of-text ids, the cache: token by token what the project itself decodes."""
    models = voters()
    pool = ModelPool(models)
    own = VotingEngine(pool, pool.refs, ALPHAS, eos_ids=EOS, top_k=4)
    ids = [own.add(DecodeRequest(np.array(p, dtype=np.int32), 12)) for p in PROMPTS]
    outputs = run(own)
    batch = left_padded()
    made = voting.generate(**batch, max_new_tokens=12, do_sample=False)[:, batch["input_ids"].shape[1] :]
    uncached = voting.generate(**batch, max_new_tokens=12, do_sample=False, use_cache=False)
    assert torch.equal(uncached[:, batch["input_ids"].shape[1] :], made)
    for row, number in enumerate(ids):
        wanted = tokens_of(outputs[number])
        assert made[row, : len(wanted)].tolist() == wanted
        assert set(made[row, len(wanted) :].tolist()) <= {0}


@pytest.mark.parametrize(
    "how",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "num_return_sequences": 2},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=["greedy", "sampling", "beams", "static cache"],
)
def test_an_ensemble_of_one_generates_as_the_one(alone: tuple[Any, Any], how: dict[str, Any]) -> None:
    texts = []
    for model in alone:
        torch.manual_seed(7)
        texts.append(model.generate(**left_padded(), max_new_tokens=9, pad_token_id=0, eos_token_id=5, **how))
    assert torch.equal(*texts)


def test_drafted_generation_is_greedy_generation(voting: Any) -> None:
    """Prompt lookup takes tokens back from the cache (crop)."""
    prompt = {"input_ids": torch.tensor([(18, 28) * 6])}
    plain = voting.generate(**prompt, max_new_tokens=16, do_sample=False)
    assert torch.equal(
        voting.generate(**prompt, max_new_tokens=16, do_sample=False, prompt_lookup_num_tokens=3), plain
    )


def test_a_member_without_a_cache_still_generates() -> None:
    config = OpenAIGPTConfig(vocab_size=VOCAB, n_positions=48, n_embd=16, n_layer=1, n_head=2)
    model = ensemble([make(config, 1), llama(2)], (1.0, 1.0))
    ids = torch.tensor([PROMPTS[2]])
    made = model.generate(ids, max_new_tokens=3, do_sample=False)
    for n in range(3, made.shape[1]):
        assert made[0, n] == model(input_ids=made[:, :n]).logits[0, -1].argmax()


@pytest.fixture(scope="module")
def folder(voting: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("saved") / "ensemble"
    voting.generation_config.pad_token_id = 0
    voting.save_pretrained(made)
    return made


class TestFolder:
    @torch.inference_mode()
    def test_loads_as_it_was_saved(self, voting: Any, folder: Path) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert isinstance(loaded, EnsembleForCausalLM)
        assert not loaded.training
        ids = torch.tensor([PROMPTS[0]])
        assert torch.equal(loaded(input_ids=ids).logits, voting(input_ids=ids).logits)
        assert loaded.generation_config.eos_token_id == list(EOS)
        assert loaded.generation_config.pad_token_id == 0
        assert loaded.config.to_dict()["alphas"] == list(ALPHAS)

    def test_arguments_reach_the_members(self, folder: Path) -> None:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            attn_implementation="eager",
            device_map={"": "cpu"},
            use_cache=False,
            output_loading_info=True,
        )
        assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
        assert {m.config._attn_implementation for m in loaded.members} == {"eager"}
        assert not any(info.values())
        assert loaded(input_ids=torch.tensor([[1, 2]])).past_key_values is None

    def test_a_configuration_alone_makes_the_same_shapes(self, folder: Path, voting: Any) -> None:
        from transformers import AutoConfig

        made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        shapes = {name: p.shape for name, p in made.named_parameters()}
        assert shapes == {name: p.shape for name, p in voting.named_parameters()}

    def test_weights_given_apart_are_saved(self, voting: Any, tmp_path: Path) -> None:
        state = {name: torch.full_like(p, 0.5) for name, p in voting.state_dict().items()}
        voting.save_pretrained(tmp_path, state_dict=state)
        saved = load_file(tmp_path / "members" / "01" / "model.safetensors")
        assert saved
        assert all((value == 0.5).all() for value in saved.values())

    def test_a_file_with_another_name_elsewhere_is_not_written_through(
        self, voting: Any, tmp_path: Path
    ) -> None:
        voting.save_pretrained(tmp_path / "a")
        original = tmp_path / "a" / "members" / "00" / "model.safetensors"
        other = tmp_path / "kept.safetensors"
        os.link(original, other)
        before = other.read_bytes()
        state = {name: torch.zeros_like(p) for name, p in voting.state_dict().items()}
        voting.save_pretrained(tmp_path / "a", state_dict=state)
        assert other.read_bytes() == before
        assert original.read_bytes() != before


class TestRefused:
    """One line that says what came and what to do."""

    def one_line(self, folder: Path) -> str:
        with pytest.raises(ModelError) as caught:
            EnsembleForCausalLM.from_pretrained(folder)
        text = str(caught.value)
        assert "\n" not in text
        return text

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        assert "ensemw2s export" in self.one_line(tmp_path)
        assert "there is no such folder" in self.one_line(tmp_path / "typo")

    def test_another_model(self, tmp_path: Path) -> None:
        voters()[0].save_pretrained(tmp_path)
        assert "model_type llama" in self.one_line(tmp_path)

    def test_a_member_that_is_gone(self, voting: Any, tmp_path: Path) -> None:
        voting.save_pretrained(tmp_path)
        (tmp_path / "members" / "01" / "model.safetensors").unlink()
        assert "member members/01" in self.one_line(tmp_path)

    def test_a_member_that_is_cut(self, voting: Any, tmp_path: Path) -> None:
        voting.save_pretrained(tmp_path)
        path = tmp_path / "members" / "03" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        assert "member members/03" in self.one_line(tmp_path)

    def test_weights_that_are_missing(self, voting: Any, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        voting.save_pretrained(tmp_path)
        path = tmp_path / "members" / "00" / "model.safetensors"
        kept = {k: v for k, v in load_file(path).items() if "mlp" not in k}
        save_file(kept, path, metadata={"format": "pt"})
        assert "members.0.model.layers.0.mlp.down_proj.weight" in self.one_line(tmp_path)

    @pytest.mark.parametrize("alphas", [(), (1.0,), (0.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
    def test_weights_that_do_not_fit(self, alphas: tuple[float, ...]) -> None:
        with pytest.raises(ModelError, match="weights"):
            ensemble(voters()[:2], alphas)

    def test_other_vocabularies(self) -> None:
        with pytest.raises(ModelError, match=r"\[80, 90\]"):
            ensemble([llama(0), llama(1, vocab_size=80)], (1.0, 1.0))
