"""What the next tokens of an answer may be: where the text has said the same before, what followed then.

Prompt lookup (Saxena, 2023; "n-gram" in other engines), the drafting that costs no model. How many tokens are drafted is decided
by how often drafts have stood, never by a clock, so that a run gives the same result again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

#: Lengths of the matches that are looked for, the longest first.
SIZES = (4, 3, 2)

#: Most tokens that are drafted at a time.
LONGEST = 8

#: What a token in a forward costs, as a share of reading the weights, on a processor (on a GPU it is less, so that drafts are
#: more often worth it than this says): see ``python -m benchmarks.speculate``.
TOKEN_COST = 0.12

#: Weight of what was seen a token ago in the share of drafted tokens that stand: of one text, and of all.
MEMORY, LONG_MEMORY = 0.9, 0.99


class Chance:
    """How likely a drafted token stands.

    Args:
        first: what is believed before anything was seen; it counts as one token.
        memory: weight of what was seen a token ago.
    """

    def __init__(self, first: float, memory: float) -> None:
        self._stood, self._tried, self._memory = first, 1.0, memory

    def learn(self, stood: bool) -> None:
        """One more token has been judged."""
        self._stood = self._memory * self._stood + stood
        self._tried = self._memory * self._tried + 1

    @property
    def value(self) -> float:
        """In (0, 1)."""
        return self._stood / self._tried


class NgramDraft:
    """The drafts of one text.

    Args:
        text: (p,) token ids.
        chance: how likely drafts of other texts have stood.
    """

    def __init__(self, text: np.ndarray, chance: float = 0.5) -> None:
        self._text: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self.chance = Chance(chance, MEMORY)
        self.extend(text.tolist())

    def extend(self, tokens: Iterable[int]) -> None:
        """The text goes on."""
        for token in tokens:
            # What ended before this token is followed by it; the latest time counts.
            for size in SIZES:
                if len(self._text) >= size:
                    self._next[tuple(self._text[-size:])] = len(self._text)
            self._text.append(token)

    def __len__(self) -> int:
        return len(self._text)

    def propose(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next; none where the text says nothing new about them."""
        for size in SIZES:
            begin = self._next.get(tuple(self._text[-size:])) if len(self._text) >= size else None
            if begin is not None:
                # Beyond the end of the text it repeats itself, with the period that it has by then.
                follow: list[int] = []
                for place in range(begin - len(self._text), begin - len(self._text) + most):
                    follow.append(self._text[place] if place < 0 else follow[place])
                return follow
        return []


class NgramDrafter:
    """The drafts of all texts that are being decoded."""

    draft_type = NgramDraft

    def __init__(self) -> None:
        self._drafts: dict[int, NgramDraft] = {}
        self._proposed: dict[int, list[int]] = {}
        # A text that begins is no better known than the others: drafts in vain cost a run once, not every text.
        self._chance = Chance(0.5, LONG_MEMORY)

    def propose(
        self, texts: Mapping[int, tuple[np.ndarray, Sequence[int]]], most: Mapping[int, int], rows: int
    ) -> dict[int, list[int]]:
        """What to draft, by text, for a step of `rows` rows; nothing where it would cost more than it gains.

        Args:
            texts: prompt and answer so far.
            most: how many tokens may be drafted; texts that are not in it have none.
            rows: of the step. Rows are filled up to the longest draft, so that each drafted token costs one in every row.
        """
        self._proposed = {}
        for i in list(self._drafts):
            if i not in texts:
                del self._drafts[i]
        for i, limit in most.items():
            prompt, answer = texts[i]
            if i not in self._drafts:
                self._drafts[i] = self.draft_type(prompt, self._chance.value)
            draft = self._drafts[i]
            draft.extend(answer[len(draft) - len(prompt) :])
            found = draft.propose(min(limit, LONGEST))
            if found:
                self._proposed[i] = found
        length = best_length(
            {i: (len(found), self._drafts[i].chance.value) for i, found in self._proposed.items()}, rows
        )
        return {i: found[:length] for i, found in self._proposed.items()} if length else {}

    def learn(self, request: int, tokens: Sequence[int]) -> None:
        """The tokens that a step has given to a text; what was proposed is judged by them, drafted or not."""
        for proposed, token in zip(self._proposed.get(request, ()), tokens, strict=False):
            self._drafts[request].chance.learn(proposed == token)
            self._chance.learn(proposed == token)
            if proposed != token:
                break


def best_length(drafts: Mapping[int, tuple[int, float]], rows: int) -> int:
    """How many tokens to draft at most, for texts whose drafts have these lengths and chances.

    A step with drafts of d tokens gives each text 1 + p + ... + p^d tokens if each stands with chance p (Leviathan, Kalman,
    Matias, arXiv 2211.17192, equation 1) and takes the time 1 + TOKEN_COST * (1 + d) * rows, with d = 0 if nothing is drafted.
    """
    if not drafts:
        return 0
    held, chances = (np.array(column)[:, None] for column in zip(*drafts.values(), strict=True))
    lengths = np.arange(LONGEST + 1)
    stand = np.where((lengths > 0) & (lengths <= held), chances**lengths, 0.0)
    gains = stand.cumsum(axis=1).sum(axis=0)
    return int(np.argmax((rows + gains) / (1 + TOKEN_COST * (1 + lengths) * rows)))
