"""The vote on bytes: each member's next byte is what its tokens say, whatever they are called, however it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from ensemw2s.core.utf8 import END, SYMBOLS, may_follow, unfinished
from ensemw2s.data.token_bytes import TokenBytes
from ensemw2s.engine.decoding.byte_reader import ByteReader
from ensemw2s.engine.decoding.byte_rows import BytePrompt, ByteRows, ByteStep
from ensemw2s.engine.decoding.byte_vote import ByteAnswer, ByteVote
from ensemw2s.engine.decoding.byte_worker import ByteWorker
from ensemw2s.engine.decoding.worker import SessionLost
from ensemw2s.engine.pool import Done
from ensemw2s.errors import ModelError
from ensemw2s.models.decoding import StepDecoder
from tests.engine.families import other_clothes

CONTEXTS = ("the ant in the barn", "Question: the bee\nAnswer:", "x", "roar far, chirp high é 東京")
ALPHAS = np.array([1.0, 0.7])


class Member:
    """A model and its tokenizer, in this process."""

    def __init__(self, path: Path, sharpness: float = 20.0) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path).eval()
        with torch.no_grad():
            # A random model finds all tokens alike: what the vote says would not matter.
            self.model.get_input_embeddings().weight *= sharpness
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        known = TokenBytes(self.tokenizer, path.name)
        self.known = known
        self.reader = ByteReader(
            self.tokenizer, known, [self.tokenizer.eos_token_id], self.model.config.vocab_size
        )

    def begin(self) -> tuple[StepDecoder, ByteReader]:
        return StepDecoder(self.model, pad_id=0), self.reader

    def prompts(self, contexts: Sequence[str], answer: bytes = b"") -> list[BytePrompt]:
        encoded = self.tokenizer(list(contexts), add_special_tokens=False)["input_ids"]
        return [
            BytePrompt(np.array(i, dtype=np.int32), c, answer) for i, c in zip(encoded, contexts, strict=True)
        ]

    def next_by_formula(self, context: str, answer: bytes) -> np.ndarray:
        """The formula written out: no cache, every token looked at, in the order of its terms."""
        prompt = self.prompts([context])[0].ids.tolist()
        tokens = self.reader.tokens(context, answer)
        total, weight, rest = np.zeros(SYMBOLS), 1.0, answer
        for j in range(len(tokens) + 1):
            ids = torch.tensor([prompt + [t for t, _ in tokens[:j]]])
            with torch.inference_mode():
                probs = self.model(ids).logits[0, -1].double().softmax(-1).numpy()
            for token, piece in enumerate(self.known.table):
                if token == self.tokenizer.eos_token_id:
                    total[END] += weight * probs[token] if not rest else 0.0
                elif piece.startswith(rest) and len(piece) > len(rest):
                    total[piece[len(rest)]] += weight * probs[token]
            if j < len(tokens):
                weight *= probs[tokens[j][0]]
                rest = rest[tokens[j][1] :]
        total[~may_follow(unfinished(answer))] = 0.0
        return total / total.sum()


class Pool:
    """The members as a pool of one worker; some steps of the second one find that it was restarted."""

    size = 2

    def __init__(self, members: Sequence[Member], lost: int = 0) -> None:
        self.members, self.worker, self.lost = members, ByteWorker(), lost
        self.asked: list[tuple[int, str]] = []

    def submit(self, slot: int, method: str, *args: Any) -> Done:
        ref = args[0]
        self.asked.append((ref, method))
        if method == "decode_bytes_end":
            return Done(self.worker.end(ref))
        step: ByteStep = args[1]
        if self.lost and ref == 1 and len(self.asked) % self.lost == 0 and not step.prompts:
            self.worker = ByteWorker()
            raise SessionLost("restarted")
        return Done(self.worker.step(ref, self.members[ref].begin, step))


def decode(
    members: Sequence[Member], contexts: Sequence[str], alphas: Any = ALPHAS, lost: int = 0, n: int = 16
) -> list[ByteAnswer]:
    pool: Any = Pool(members, lost)
    vote = ByteVote(pool, range(len(members)), alphas, finished=lambda text: b"q" in text, max_bytes=n)
    return vote.decode([m.prompts(contexts) for m in members])


@pytest.fixture(scope="module")
def first(tiny_weak: Path) -> Member:
    return Member(tiny_weak)


@pytest.fixture(scope="module")
def other(tiny_other: Path) -> Member:
    return Member(tiny_other)


@pytest.fixture(scope="module")
def clothed(tiny_weak: Path, tmp_path_factory: pytest.TempPathFactory) -> Member:
    """The first one with the ids of its vocabulary shuffled."""
    return Member(other_clothes(tiny_weak, tmp_path_factory.mktemp("clothes") / "clothed", seed=3))


@settings(max_examples=40)
@given(st.sampled_from(CONTEXTS), st.text(max_size=8), st.data())
def test_every_beginning_of_a_text_is_cut_into_its_bytes(
    first: Member, other: Member, context: str, text: str, data: st.DataObject
) -> None:
    whole = (" " + text).encode()
    answer = whole[: data.draw(st.integers(0, len(whole)))]
    for member in (first, other):
        found = member.reader.tokens(context, answer)
        assert b"".join(member.known.table[t] for t, _ in found) == answer
        assert [size for _, size in found] == [len(member.known.table[t]) for t, _ in found]
        # Whole texts are cut as the tokenizer does, behind the context's own tokens.
        if not unfinished(answer):
            ids = member.tokenizer(context + answer.decode(), add_special_tokens=False)["input_ids"]
            assert [t for t, _ in found] == ids[len(member.prompts([context])[0].ids) :]


def test_tokens_that_go_on_from_some_bytes(first: Member) -> None:
    reader = first.reader
    silent = first.tokenizer.eos_token_id
    for rest in (b"", b" ", b"b", b" th", b"\xe2", b"zzzz", b"\xff"):
        expected: dict[int, list[int]] = {}
        for token, piece in enumerate(first.known.table):
            if piece.startswith(rest) and len(piece) > len(rest) and token != silent:
                expected.setdefault(piece[len(rest)], []).append(token)
        found = reader.after(rest)
        if found is None:
            assert expected == {}
            continue
        stop, starts, symbols = found
        groups = np.split(reader.order[starts[0] : stop], starts[1:] - starts[0])
        assert {int(s): sorted(g.tolist()) for s, g in zip(symbols, groups, strict=True)} == expected
        assert reader.has(rest)
    assert not reader.has(b"zzzz")


@pytest.mark.parametrize("name", ["first", "other"])
def test_the_next_byte_is_the_formulas(name: str, request: pytest.FixtureRequest) -> None:
    """Along an answer in which tokens merge as it grows, characters are of several bytes, and rows leave; float32."""
    member: Member = request.getfixturevalue(name)
    text = " buzz loud é 東 x".encode()
    rows = ByteRows(*member.begin(), member.prompts(CONTEXTS))
    here = list(CONTEXTS)
    for n in range(len(text)):
        found = rows.next_symbols()
        for row, context in enumerate(here):
            expected = member.next_by_formula(context, text[:n])
            np.testing.assert_allclose(found[row], expected, rtol=2e-4, atol=1e-7, err_msg=f"{context} {n}")
        keep = None
        if n in (5, 12):
            keep = np.array([len(here) - 1, *range(1, len(here) - 1)])
            here = [here[i] for i in keep]
        rows.step(keep, np.full(len(here), text[n]))


def test_a_batch_that_begins_in_the_middle_says_the_same(first: Member) -> None:
    answer = b" buzz lo"
    grown = ByteRows(*first.begin(), first.prompts(CONTEXTS))
    for byte in answer:
        grown.next_symbols()
        grown.step(None, np.full(len(CONTEXTS), byte))
    begun = ByteRows(*first.begin(), first.prompts(CONTEXTS, answer))
    np.testing.assert_allclose(begun.next_symbols(), grown.next_symbols(), rtol=2e-4, atol=1e-7)


def test_one_model_in_two_clothes_answers_as_the_one(first: Member, clothed: Member) -> None:
    assert clothed.tokenizer.get_vocab() != first.tokenizer.get_vocab()
    alone = decode([first], CONTEXTS, [1.0])
    both = decode([first, clothed], CONTEXTS)
    for one, two in zip(alone, both, strict=True):
        assert two.text == one.text
        np.testing.assert_allclose(two.probabilities, one.probabilities, rtol=1e-4)
        assert all(a == b for a, b in two.members)


def test_two_families_vote_by_the_mixture_of_what_each_says(first: Member, other: Member) -> None:
    """The whole decode again, from the formula of each member alone."""
    for context, answer in zip(CONTEXTS[:2], decode([first, other], CONTEXTS[:2], n=8), strict=True):
        for n, symbol in enumerate(answer.text):
            own = np.stack([m.next_by_formula(context, answer.text[:n]) for m in (first, other)])
            voted = ALPHAS @ own / ALPHAS.sum()
            assert voted.argmax() == symbol
            assert answer.probabilities[n] == pytest.approx(voted.max(), rel=1e-4)
            assert answer.members[n] == own.argmax(axis=1).tolist()


def test_an_answer_does_not_depend_on_the_others(first: Member, other: Member) -> None:
    together = decode([first, other], CONTEXTS, n=24)
    for context, answer in zip(CONTEXTS, together, strict=True):
        (alone,) = decode([first, other], [context], n=24)
        assert alone.text == answer.text
    assert len({answer.text for answer in together}) > 1


def test_answers_are_text_and_end_where_they_are_told(first: Member, other: Member) -> None:
    for answer in decode([first, other], CONTEXTS, n=30):
        (answer.text[: len(answer.text) - len(unfinished(answer.text))]).decode()
        assert b"q" not in answer.text[:-1]
        ended = answer.end is not None
        assert ended or answer.text.endswith(b"q") or len(answer.text) == 30
        assert len(answer.probabilities) == len(answer.members) == len(answer.text)


@pytest.mark.parametrize("lost", [3, 7])
def test_a_restarted_worker_begins_from_the_texts(first: Member, other: Member, lost: int) -> None:
    plain = decode([first, other], CONTEXTS)
    assert [a.text for a in decode([first, other], CONTEXTS, lost=lost)] == [a.text for a in plain]


def test_a_text_that_outgrows_the_context_is_an_error(first: Member, other: Member) -> None:
    with pytest.raises(ModelError, match="context holds 128"):
        decode([first, other], ["the ant" + " the ant" * 70, "x"])
