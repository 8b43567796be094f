"""`ensemw2s export`: a run's ensemble as a folder, and that folder votes as the run does."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import ensemw2s.hf
from ensemw2s import api, cli
from ensemw2s.config import ExperimentConfig, ModelConfig
from ensemw2s.errors import ModelError, RunDirectoryError
from ensemw2s.models.storage import load_saved

QUESTIONS = ["the ant in the barn", "the lynx in the shed by the lake", "koi"]
ANSWERS = [f"the {animal}" for animal in ("ant", "cat", "hen")]


@pytest.fixture(scope="module")
def trained(make_tiny: Callable[..., dict[str, Any]], tiny_strong: Path, tmp_path_factory: Any) -> Path:
    """A run to its labels: one member without a layer, one with adapters, both vote."""
    config = make_tiny(
        tmp_path_factory.mktemp("export"),
        vote__rounds="all",
        weak__training__epochs=1,
        weak__models=[
            {"path": str(tiny_strong), "drop_layers": "1"},
            {"path": str(tiny_strong), "lora": {"rank": 2, "alpha": 8}},
        ],
    )
    return api.run(ExperimentConfig.model_validate(config), until="labels").run_dir


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: Any) -> Path:
    ensemw2s.hf.register()
    return api.export(trained, tmp_path_factory.mktemp("out") / "new" / "folder")


def files(folder: Path) -> Iterator[Path]:
    yield from (path for path in sorted(folder.rglob("*")) if not path.is_dir())


def test_the_folder_is_whole_and_of_its_own(trained: Path, exported: Path) -> None:
    names = {str(path.relative_to(exported)) for path in files(exported)}
    for member in ("members/00", "members/01"):
        assert {f"{member}/config.json", f"{member}/model.safetensors"} <= names
    assert {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= names
    assert not any(path.is_symlink() for path in files(exported))
    texts = [path.read_text() for path in files(exported) if path.suffix != ".safetensors"]
    assert not any(str(trained.parent.parent) in text for text in texts)
    assert sorted(p.name for p in exported.parent.iterdir()) == ["folder"]
    config = json.loads((exported / "config.json").read_text())
    assert config["model_type"] == "ensemw2s"
    assert config["alphas"] == api.load_ensemble(trained).alphas.tolist()
    assert [m["num_hidden_layers"] for m in config["members"]] == [2, 3]


def test_every_member_is_the_run_s_own(trained: Path, exported: Path, tiny_strong: Path) -> None:
    """The adapters are in the weights, the layers are out, and the numbers are the same."""
    ids = torch.arange(20)[None]
    base = ModelConfig(path=str(tiny_strong))
    for number in ("00", "01"):
        own = load_saved(trained / "members" / number, device="cpu", dtype=torch.float32)
        other = AutoModelForCausalLM.from_pretrained(exported / "members" / number)
        plain = AutoModelForCausalLM.from_pretrained(base.path)
        with torch.inference_mode():
            assert torch.equal(own(input_ids=ids).logits, other(input_ids=ids).logits)
            assert not torch.allclose(own(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-2)


def test_generates_what_the_run_generates(trained: Path, exported: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    own = api.load_ensemble(trained)
    texts = [model.config.prompt.format(question=q) for q in QUESTIONS]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    assert batch["attention_mask"][-1, 0] == 0
    made = model.generate(**batch, max_new_tokens=6, do_sample=False)[:, batch["input_ids"].shape[1] :]
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer)
    piped = pipe(texts, max_new_tokens=6, do_sample=False, return_full_text=False, batch_size=3)
    shown = tokenizer.batch_decode(made, skip_special_tokens=True)
    assert [answer["generated_text"] for [answer] in piped] == shown
    stop = model.config.stop
    for row, question in zip(made, QUESTIONS, strict=True):
        wanted = own.generate(question)
        text = tokenizer.decode(row, skip_special_tokens=True).lstrip()
        for end in stop:
            text = text.split(end)[0]
        assert row.tolist()[: len(wanted.tokens)] == wanted.tokens
        assert text.strip() == wanted.text


def test_another_number_format(trained: Path, tmp_path: Path) -> None:
    folder = api.export(trained, tmp_path / "half", dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_links_are_hard_and_copies_are_none(trained: Path, exported: Path, tmp_path: Path) -> None:
    source = trained / "members" / "00" / "model.safetensors"
    linked = api.export(trained, tmp_path / "linked", link=True)
    assert (linked / "members" / "00" / "model.safetensors").stat().st_ino == source.stat().st_ino
    assert (linked / "members" / "00" / "config.json").stat().st_nlink == 1
    assert (exported / "members" / "00" / "model.safetensors").stat().st_ino != source.stat().st_ino


def test_without_hard_links_it_copies(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    folder = api.export(trained, tmp_path / "copied", link=True)
    assert (folder / "members" / "00" / "model.safetensors").stat().st_nlink == 1


class TestRefused:
    def test_a_folder_that_holds_something(self, trained: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(RunDirectoryError, match="already holds something"):
            api.export(trained, tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def test_a_number_format_that_is_none(self, trained: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="float8"):
            api.export(trained, tmp_path / "out", dtype="float8")
        assert list(tmp_path.iterdir()) == []

    def test_interrupted_leaves_nothing(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("ensemw2s.hf.export.write_head", interrupt)
        with pytest.raises(KeyboardInterrupt):
            api.export(trained, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_a_full_disk_is_one_line(
        self, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*paths: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(RunDirectoryError, match=r"No space left on device; free space.*--output"):
            api.export(trained, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_the_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out"
    assert cli.main(["export", str(trained), "--output", str(target), "--link"]) == 0
    assert str(target) in capsys.readouterr().out
    assert (target / "config.json").is_file()
    assert cli.main(["export", str(trained), "--output", str(target)]) == 2
    assert cli.main(["export", str(tmp_path / "none"), "--output", str(tmp_path / "b")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert "is not a run directory" in lines[1]


def test_lm_evaluation_harness_scores_as_the_run_labels(trained: Path, exported: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from ensemw2s.core.voting import mixture_logprob

    model = HFLM(pretrained=str(exported), backend="causal", device="cpu", dtype="float32", batch_size=2)
    pairs = [(f"Question: {q}\nAnswer:", f" {a}") for q in QUESTIONS for a in ANSWERS]
    found = model.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    own = api.load_ensemble(trained)
    texts = []
    for prompt, answer in pairs:
        whole, n = own.tokenizer.encode(prompt + answer), len(own.tokenizer.encode(prompt))
        texts.append((np.array(whole[:n]), (np.array(whole[n:]),)))
    scores = [
        own._pool.submit(m, "score_texts", ref, texts, "").result().logprobs
        for m, ref in enumerate(own._ensemble.refs)
    ]
    voted = mixture_logprob(np.stack(scores), own.alphas)
    starts = np.cumsum([0, *(len(t[1][0]) for t in texts)])[:-1]
    np.testing.assert_allclose([value for value, _ in found], np.add.reduceat(voted, starts), atol=1e-4)
    options = {"until": ["\n"], "max_gen_toks": 6, "temperature": 0}
    prompts = [f"Question: {q}\nAnswer:" for q in QUESTIONS]
    made = model.generate_until(
        [Instance("generate_until", {}, (p, options), i) for i, p in enumerate(prompts)]
    )
    assert [text.strip() for text in made] == [own.generate(q).text for q in QUESTIONS]
