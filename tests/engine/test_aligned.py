"""Splits of members with different tokenizers: cut where all of them cut, and what of it cannot be done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.engine.aligned import AlignedSplits, Readers
from ensemw2s.engine.prepare import begin_run, check_directory, prepare
from ensemw2s.engine.supervisor import WeakSupervisor
from ensemw2s.engine.tasks import ModelRef, TokenScores
from ensemw2s.errors import ConfigError, DataError, ModelError
from ensemw2s.settings import config_from_mapping
from tests.engine.families import changed, other_clothes

MakeConfig = Callable[..., dict[str, Any]]


def config_of(plain: dict[str, Any]) -> ExperimentConfig:
    return api.as_config(ExperimentConfig.model_validate(plain))


@pytest.fixture(scope="module")
def readers(make_tiny: MakeConfig, tiny_weak: Path, tiny_other: Path) -> Readers:
    data = config_of(make_tiny(Path("nowhere"), data__max_length=4096)).data
    named = [
        (AutoTokenizer.from_pretrained(p), n)
        for p, n in ((tiny_weak, "a"), (tiny_other, "b"), (tiny_weak, "c"))
    ]
    return Readers(data, named)


def scores(values: Any, hits: Any) -> TokenScores:
    return TokenScores(np.array(values, dtype=np.float32), np.array(hits, dtype=bool), {})


def test_segments_by_hand(readers: Readers) -> None:
    """` hiss low` is two tokens of the first family and more of the second, which end together with a word."""
    data = readers.encode([Sample("q", "the ant", ("buzz loud", "hiss low"), 1)])
    first, other = data.of_member(0), data.of_member(1)
    assert data.of_member(2) is first
    tokens = [readers.tokenizers[r].convert_ids_to_tokens(s.targets[0]) for r, s in enumerate((first, other))]
    assert tokens[0] == ["Ġhiss", "Ġlow", "<end>"]
    assert "".join(tokens[1][:-1]) == "Ġhiss" + "Ġlow"
    assert len(tokens[1]) > 3
    assert tokens[1][-1] == "<stop>"
    assert len(data.targets[0]) == 3
    np.testing.assert_array_equal(data.target_offsets, [0, 3])
    n = len(tokens[1]) - 1
    own = data.target_scores(1, scores(-np.arange(1.0, n + 2), np.ones(n + 1)))
    assert own.logprobs.sum() == -(n + 1) * (n + 2) / 2
    assert own.logprobs[-1] == -(n + 1)
    missed = data.target_scores(1, scores(np.zeros(n + 1), np.arange(n + 1) != 1))
    assert missed.hits.tolist() == [False, True, True]
    assert data.first_tokens(0, 1, 3) == (1, 3)


@settings(max_examples=60)
@given(
    st.lists(st.text(min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=3), st.text(max_size=6)
)
def test_any_text_is_cut_alike(readers: Readers, choices: list[str], question: str) -> None:
    data = readers.encode([Sample("q", "Q" + question, tuple(choices), 0)])
    texts = readers.encoders[0].texts(data.samples[0])[1]
    n_bytes = [len(t.encode()) for t in texts]
    for r, known in enumerate(readers._bytes or ()):
        own = data.of_member(r)
        flat = np.concatenate(own.encoded[0].continuations)
        sizes = data.choice_scores(r, scores(known.lengths[flat], np.ones(len(flat)))).logprobs
        # Every byte of a choice is in one of its segments.
        totals = np.add.reduceat(sizes, data.choice_token_offsets[:-1])
        assert totals.tolist() == n_bytes
        assert len(sizes) <= min(len(np.concatenate(s.encoded[0].continuations)) for s in data._splits)
    # Equal texts are numbered alike, and end-of-text is like nothing else.
    assert len(data.targets[0]) == data.target_offsets[-1]
    assert data.targets[0][-1] not in data.targets[0][:-1]


def test_a_class_is_a_segment_whatever_the_tokenizer(make_tiny: MakeConfig, readers: Readers) -> None:
    data = config_of(make_tiny(Path("nowhere"))).data
    named = list(zip(readers.tokenizers, "ab", strict=True))
    found = Readers(data, named, ("yes", "no")).encode(
        [
            Sample("q1", "x", ("yes", "no"), 1),
            Sample("q2", "y", ("yes", "no"), 0),
            Sample("q3", "z", ("yes", "no"), 1),
        ]
    )
    assert found.choice_token_offsets.tolist() == list(range(7))
    assert [t.tolist() for t in found.targets] == [[0], [1], [0]]
    assert found.target_scores(1, scores([-1, -2, -3], [1, 0, 1])).logprobs.tolist() == [-1, -2, -3]


def test_an_answer_that_does_not_come_back_is_named(readers: Readers, make_tiny: MakeConfig) -> None:
    lower = changed(readers.tokenizers[0], lambda parts: parts.update(normalizer={"type": "Lowercase"}))
    data = config_of(make_tiny(Path("nowhere"))).data
    both = Readers(data, [(readers.tokenizers[1], "plain-model"), (lower, "lower-model")])
    both.encode([Sample("q1", "The Prompt May Change", ("a b", "c"), 0)])
    with pytest.raises(
        DataError, match=r"of lower-model does not give back the answer ' A b' of sample 'q2' but ' a b'"
    ):
        both.encode([Sample("q1", "x", ("a b", "c"), 0), Sample("q2", "x", ("c", "A b"), 0)])


def test_one_model_in_two_clothes_scores_alike(
    make_tiny: MakeConfig, tiny_weak: Path, tiny_other: Path, tmp_path: Path
) -> None:
    """float32, one thread: sums in another order differ by rounding."""
    clothed = other_clothes(tiny_weak, tmp_path / "clothed")
    plain = make_tiny(tmp_path, vote__alignment="bytes", boosting__prior="unigram")
    plain["weak"]["models"] = [{"path": str(p)} for p in (tiny_weak, clothed, tiny_other)]
    config = config_of(plain)
    prepared = prepare(config)
    begin_run(prepared, check_directory(config), 0)
    named = [(AutoTokenizer.from_pretrained(m.path), m.display_name) for m in prepared.absolute.weak.models]
    splits = AlignedSplits(prepared.run_dir, config.data, named, "lm")
    worker = WeakSupervisor(prepared.absolute, prepared.run_dir, threads=1, report=lambda event: None)
    data = splits["easy_val"]
    for method in ("target_scores", "choice_scores"):
        raw = [getattr(worker, method)(ModelRef("weak", i), "easy_val") for i in range(3)]
        own = [getattr(data, method)(i, scores) for i, scores in enumerate(raw)]
        np.testing.assert_allclose(own[1].logprobs, own[0].logprobs, atol=1e-5)
        np.testing.assert_array_equal(own[1].hits, own[0].hits)
        assert len(raw[2].logprobs) > len(own[2].logprobs) == len(own[0].logprobs)


def test_members_of_two_families_need_the_option(
    make_tiny: MakeConfig, tiny_weak: Path, tiny_other: Path, tmp_path: Path
) -> None:
    plain = make_tiny(tmp_path)
    plain["weak"]["models"] = [{"path": str(tiny_weak)}, {"path": str(tiny_other)}]
    with pytest.raises(
        ModelError, match=r"tiny-other has another tokenizer than tiny-weak: .* set vote.alignment bytes"
    ):
        prepare(config_of(plain))
    plain["vote"]["alignment"] = "bytes"
    prepared = prepare(config_of(plain))
    assert prepared.encoded["easy_train"].of_member(1) is not prepared.encoded["easy_train"].of_member(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels__targets": "tokens"}, "labels.targets tokens are of one vocabulary"),
        ({"boosting__prior": "classes"}, "boosting.prior classes is one of a vocabulary"),
        ({"runtime__speculate": "ngram"}, "runtime.speculate ngram drafts tokens"),
    ],
)
def test_what_does_not_go_with_bytes(
    make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    make = {"vote__alignment": "bytes", **changes}
    with pytest.raises(ConfigError, match=message):
        config_from_mapping(make_tiny(tmp_path, **make))
