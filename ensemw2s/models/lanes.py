"""Step-wise decoding of members that share a base: every member's rows are lanes of one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ensemw2s.models.adapters import RoutedModel, SharedBase
from ensemw2s.models.decoding import StepDecoder
from ensemw2s.models.topk import TopK


@dataclass(frozen=True, eq=False)
class Move:
    """One member's step, as of :class:`ensemw2s.models.decoding.StepDecoder`.

    Attributes:
        keep: (n,) rows that go on, in their new order; None where all do.
        tokens: (n,) the token that each of them is continued by.
        prompts: texts of new rows.
        stand: (m,) of the tokens that the last step appended to each of the rows that are held, how many stand; None: all.
        drafts: (n, d) what may follow the tokens, -1 where there is none; None: nothing.
    """

    keep: np.ndarray | None
    tokens: np.ndarray
    prompts: Sequence[np.ndarray]
    stand: np.ndarray | None = None
    drafts: np.ndarray | None = None


@dataclass(eq=False)
class _Piece:
    """Lanes that step together: a decoder, how its rows are sent to adapters, and whose each one is, (N,)."""

    decoder: StepDecoder
    model: RoutedModel
    owner: np.ndarray


class Lanes:
    """The decodes of the members of one base. A member's lanes, in their order, are its rows.

    Members that step together, which is the rule, do so in one forward. The lanes of one that does not are set apart, and
    join the others when they step together again.
    """

    def __init__(self, shared: SharedBase, *, pad_id: int) -> None:
        """Take a base whose cache lets rows enter beside others; raises as :class:`StepDecoder`."""
        self.shared, self._pad_id = shared, pad_id
        self._pieces: list[_Piece] = []

    def step(self, moves: Mapping[int, Move]) -> None:
        """Drop rows, append tokens, read new texts: for each of these members its own.

        Raises:
            ValueError, ModelError: as the methods of ``StepDecoder``; the lanes are in doubt then.
        """
        piece = self._together(moves)
        members = sorted(moves)
        if any(move.keep is not None for move in moves.values()):
            order = _order(piece.owner, moves)
            piece.decoder.keep(order)
            piece.owner = piece.owner[order]
        for t in members:
            held = int((piece.owner == t).sum())
            if len(moves[t].tokens) != held:
                raise ValueError(f"{len(moves[t].tokens)} tokens came for {held} rows of member {t}")
        if len(piece.owner):
            tokens = np.empty(len(piece.owner), dtype=np.int64)
            longest = max(0 if m.drafts is None else m.drafts.shape[1] for m in moves.values())
            drafts = np.full((len(piece.owner), longest), -1, dtype=np.int64)
            for t in members:
                own, move = np.flatnonzero(piece.owner == t), moves[t]
                tokens[own] = move.tokens
                if move.drafts is not None:
                    drafts[own, : move.drafts.shape[1]] = move.drafts
            piece.model.adapters = piece.owner
            piece.decoder.advance(tokens, drafts)
        entering = sorted((p, t) for t in members for p in range(len(moves[t].prompts)))
        if entering:
            owner = np.array([t for _, t in entering], dtype=np.int64)
            piece.model.adapters = owner
            piece.decoder.enter([moves[t].prompts[p] for p, t in entering])
            piece.owner = np.concatenate([piece.owner, owner])

    def drop(self, member: int) -> None:
        """Forget a member's rows."""
        for piece in self._pieces:
            if (piece.owner == member).any():
                kept = np.flatnonzero(piece.owner != member)
                piece.decoder.keep(kept)
                piece.owner = piece.owner[kept]
        self._pieces = [piece for piece in self._pieces if len(piece.owner)]

    def find(self, member: int) -> tuple[StepDecoder | None, np.ndarray]:
        """Where a member's distributions are: the decoder and their places there, (n,); None for a member without rows."""
        for piece in self._pieces:
            lanes = np.flatnonzero(piece.owner == member)
            if len(lanes):
                return piece.decoder, piece.decoder.places(lanes)
        return None, np.zeros(0, dtype=np.int64)

    def _together(self, moves: Mapping[int, Move]) -> _Piece:
        """One piece with all lanes of these members and no others, settled."""
        joined: _Piece | None = None
        others: list[_Piece] = []
        for piece in self._pieces:
            mine = np.isin(piece.owner, list(moves))
            if not mine.any():
                others.append(piece)
                continue
            if not mine.all():
                others.append(self._part(piece, np.flatnonzero(~mine)))
            stand = piece.decoder.counts.copy()
            for t, move in moves.items():
                if move.stand is not None:
                    stand[piece.owner == t] = move.stand
            piece.decoder.settle(stand)
            if joined is None:
                joined = piece
            else:
                joined.decoder.join(piece.decoder)
                joined.owner = np.concatenate([joined.owner, piece.owner])
        if joined is None:
            model = self.shared.every()
            joined = _Piece(StepDecoder(model, pad_id=self._pad_id), model, np.zeros(0, dtype=np.int64))
        self._pieces = [joined, *others]
        return joined

    def _part(self, piece: _Piece, lanes: np.ndarray) -> _Piece:
        model = self.shared.every()
        decoder = piece.decoder.split(lanes, model)
        owner, piece.owner = piece.owner[lanes], np.delete(piece.owner, lanes)
        return _Piece(decoder, model, owner)


class LaneRows:
    """One member's rows among the lanes: what a ``StepDecoder`` of its own would answer.

    Args:
        lanes: of all members of the base.
        member: which.
    """

    def __init__(self, lanes: Lanes, member: int) -> None:
        self.lanes, self.member = lanes, member
        lanes.drop(member)

    def top_k(self, k: int, rows: np.ndarray | None = None) -> TopK:
        """See :meth:`StepDecoder.top_k`."""
        decoder, own = self._held()
        return decoder.top_k(k, own if rows is None else own[rows])

    def exact(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """See :meth:`StepDecoder.exact`."""
        decoder, own = self._held()
        values: np.ndarray = decoder.exact(own[rows], ids)
        return values

    def full(self, rows: np.ndarray) -> np.ndarray:
        """See :meth:`StepDecoder.full`."""
        decoder, own = self._held()
        values: np.ndarray = decoder.full(own[rows])
        return values

    def draw(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """See :meth:`StepDecoder.draw`."""
        decoder, own = self._held()
        tokens: np.ndarray = decoder.draw(own[rows], uniforms)
        return tokens

    def _held(self) -> tuple[StepDecoder, np.ndarray]:
        decoder, own = self.lanes.find(self.member)
        if decoder is None:
            raise ValueError(f"member {self.member} holds no rows")
        return decoder, own


def _order(owner: np.ndarray, moves: Mapping[int, Move]) -> np.ndarray:
    """The lanes that go on. Row by row, the members in turn: where all keep the same, all adapters stay in step."""
    places: list[tuple[int, int, int]] = []
    for t, move in moves.items():
        own = np.flatnonzero(owner == t)
        kept = own if move.keep is None else own[np.asarray(move.keep, dtype=np.int64)]
        places += [(row, t, int(lane)) for row, lane in enumerate(kept)]
    return np.array([lane for _, _, lane in sorted(places)], dtype=np.int64)
