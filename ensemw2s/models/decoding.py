"""One member's side of a step-wise voted decode: batched, with a key/value cache, rows coming and going."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ensemw2s.core.sampling import draw_token
from ensemw2s.errors import ModelError
from ensemw2s.models.cache import SlotCache, takes_slot_cache
from ensemw2s.models.facts import max_positions
from ensemw2s.models.topk import TopK, most_probable


class StepDecoder:
    """Next-token distributions of a batch of texts that grow by one token a step, or by drafted ones.

    The batch is aligned at its texts' ends. Probabilities are a float32 softmax of the logits, kept until the
    next step, so that ``top_k``, ``exact`` and ``full`` of one step never disagree. They depend on each text
    alone, not on what other members do; which rows stand beside it changes them by rounding.

    A step is, in this order: ``settle`` which drafted tokens stand, ``keep`` the rows that go on, ``advance`` them by the
    tokens that were voted, ``enter`` new texts; then any of ``top_k``, ``exact``, ``full`` and ``draw``. Where
    ``can_enter`` is False (layers with a recurrent state, or a cache that layers share), new texts wait until the batch is
    empty, and nothing can be drafted.

    A row that was advanced by d drafted tokens has 1 + d distributions, one behind the voted token and one behind each drafted
    one; all other rows have one. ``top_k``, ``exact``, ``full`` and ``draw`` count them row by row.
    """

    def __init__(self, model: Any, *, pad_id: int) -> None:
        """Take a model in evaluation mode.

        Args:
            model: ``PreTrainedModel`` or ``PeftModel``.
            pad_id: any valid token id; what stands on padding is masked.

        Raises:
            ModelError: the architecture has no key/value cache.
            ValueError: the pad id is outside the vocabulary.
        """
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        parameters = inspect.signature(base.forward).parameters
        if "past_key_values" not in parameters:
            raise ModelError(
                f"{type(base).__name__} has no key/value cache, which step-wise decoding needs: choose "
                "another model"
            )
        self._model = model
        self._takes_positions = "position_ids" in parameters
        self._takes_tail = "logits_to_keep" in parameters
        self._vocab_size = int(base.config.get_text_config(decoder=True).vocab_size)
        self._max_positions = max_positions(base.config)
        if not 0 <= pad_id < self._vocab_size:
            raise ValueError(f"pad id {pad_id} is outside 0..{self._vocab_size - 1}")
        self._pad_id = pad_id
        self._slots = takes_slot_cache(base.config)
        self._device = next(model.parameters()).device
        self._probs = torch.zeros(0, self._vocab_size, device=self._device)
        self._cache: Any = None
        self._lengths = np.zeros(0, dtype=np.int64)
        self._width = 0
        # Distributions of each row; the columns that the last step with drafts has read, and the rows that it advanced.
        self._counts = np.zeros(0, dtype=np.int64)
        self._columns = 0
        self._open = np.zeros(0, dtype=np.bool_)

    @property
    def batch_size(self) -> int:
        """Rows that are being decoded."""
        return len(self._lengths)

    @property
    def counts(self) -> np.ndarray:
        """Distributions of each row, (B,)."""
        return self._counts

    @property
    def vocab_size(self) -> int:
        """V, the width of the distributions."""
        return self._vocab_size

    @property
    def max_positions(self) -> int | None:
        """Tokens that the model's context holds, or None where it names no limit."""
        return self._max_positions

    @property
    def can_enter(self) -> bool:
        """Whether new texts may enter beside others; otherwise they enter an empty batch only."""
        return self._slots

    @property
    def rounding(self) -> float:
        """Relative distance of neighbouring numbers in the format of the weights."""
        return float(torch.finfo(next(self._model.parameters()).dtype).eps)

    def start(self, prompts: Sequence[np.ndarray]) -> None:
        """Read the prompts, a row each, and forget what was decoded before; raises as ``enter``."""
        self._clear()
        self.enter(prompts)

    @torch.inference_mode()
    def enter(self, prompts: Sequence[np.ndarray]) -> None:
        """Read new texts in a forward of their own and append their rows, in this order.

        Raises:
            ValueError: no prompts, or an empty one.
            ModelError: a prompt longer than the model's context, or rows that are being decoded by a model
                whose cache takes no newcomers.
        """
        if len(prompts) == 0 or min(len(p) for p in prompts) == 0:
            raise ValueError("a decode starts from at least one prompt of at least one token")
        if self.batch_size:
            self._check_slots()
        lengths = np.array([len(p) for p in prompts], dtype=np.int64)
        self._check_length(int(lengths.max()))
        width = int(lengths.max())
        ids = np.full((len(prompts), width), self._pad_id, dtype=np.int64)
        for i, prompt in enumerate(prompts):
            ids[i, width - len(prompt) :] = prompt
        places = np.arange(width) - (width - lengths)[:, None]
        cache = SlotCache() if self._slots else None
        output, probs = self._forward(ids, np.maximum(places, 0), lengths, width, cache)
        probs = probs[:, -1]
        if self.batch_size:
            self._cache.join(output)
            probs = torch.cat([self._probs, probs])
        else:
            self._cache = output
        self._probs = probs
        self._lengths = np.concatenate([self._lengths, lengths])
        self._counts = np.concatenate([self._counts, np.ones(len(prompts), dtype=np.int64)])
        self._open = np.concatenate([self._open, np.zeros(len(prompts), dtype=np.bool_)])
        self._width = max(self._width, width)

    @torch.inference_mode()
    def settle(self, stand: np.ndarray | None = None) -> None:
        """Say how many of the tokens that the last step appended stand, the voted one included: the others are forgotten.

        Args:
            stand: (B,) at least 1 for rows that were advanced, and not looked at for those that have entered since. None:
                all stand.

        Raises:
            ValueError: more tokens than were appended, or fewer than 1.
        """
        if self._columns == 0:
            return
        kept = self._counts if stand is None else np.array(stand, dtype=np.int64)
        if kept.shape != (self.batch_size,) or (self._open & ((kept < 1) | (kept > self._counts))).any():
            raise ValueError(f"of {self._counts.tolist()} tokens, {kept.tolist()} cannot stand")
        kept = np.where(self._open, kept, self._columns)
        last = np.cumsum(self._counts) - self._counts + np.where(self._open, kept, 1) - 1
        self._probs = self._probs[torch.from_numpy(last).to(self._device)]
        self._cache.retract(self._columns, kept)
        self._lengths = self._lengths - self._columns + kept
        self._settled()
        self._trim()

    @torch.inference_mode()
    def take_back(self, counts: np.ndarray) -> None:
        """Forget the last counts[i] tokens of row i, (B,) integer; ``advance`` comes next."""
        self.settle()
        self._check_slots()
        self._cache.retract(int(counts.max()), int(counts.max()) - counts)
        self._lengths = self._lengths - counts
        self._trim()

    def _settled(self) -> None:
        self._columns = 0
        self._counts = np.ones(self.batch_size, dtype=np.int64)
        self._open = np.zeros(self.batch_size, dtype=np.bool_)

    def _trim(self) -> None:
        self._width = int(self._lengths.max())
        self._cache.trim(self._width)

    @torch.inference_mode()
    def advance(self, tokens: np.ndarray, drafts: np.ndarray | None = None) -> None:
        """Append one token to every row and compute the next distributions.

        Args:
            tokens: (B,) integer.
            drafts: (B, d) integer, what may follow it; rows of fewer tokens end in -1. All are read in the same forward, and
                ``settle`` says which of them stand.

        Raises:
            ValueError: not one token a row, or an id outside the vocabulary.
            ModelError: a row has become longer than the model's context; drafts for a model that cannot take them back.
        """
        self.settle()
        given = np.asarray(tokens)
        if given.shape != (self.batch_size,) or self.batch_size == 0:
            raise ValueError(f"{given.shape} tokens came for {self.batch_size} rows")
        if given.min() < 0 or given.max() >= self._vocab_size:
            raise ValueError(f"token ids must be in 0..{self._vocab_size - 1}")
        fed, counts = given.astype(np.int64)[:, None], np.ones(len(given), dtype=np.int64)
        if drafts is not None and drafts.size and (drafts >= 0).any():
            fed, counts = self._with_drafts(fed, np.asarray(drafts, dtype=np.int64))
        self._check_length(int((self._lengths + counts).max()))
        q = fed.shape[1]
        positions = self._lengths[:, None] + np.arange(q)
        if self._max_positions is not None:
            positions = np.minimum(positions, self._max_positions - 1)
        self._lengths = self._lengths + q
        self._width += q
        self._cache, probs = self._forward(fed, positions, self._lengths, self._width, self._cache, q)
        self._probs = probs.flatten(0, 1)
        if q > 1:
            read = torch.from_numpy((np.arange(q) < counts[:, None]).ravel()).to(self._device)
            self._probs = self._probs[read]
            self._counts, self._columns = counts, q
            self._open = np.ones(len(counts), dtype=np.bool_)

    def _with_drafts(self, fed: np.ndarray, drafts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens (B, 1 + d) to read, and how many of them each row has, (B,); what follows them is padding."""
        self._check_slots()
        counts = 1 + (drafts >= 0).sum(axis=1)
        filled = np.arange(drafts.shape[1]) < counts[:, None] - 1
        if (
            len(drafts) != len(fed)
            or (drafts.max(initial=0) >= self._vocab_size)
            or ((drafts >= 0) != filled).any()
        ):
            raise ValueError(
                f"drafts are ids in 0..{self._vocab_size - 1}, then -1, for each of {len(fed)} rows"
            )
        width = int(counts.max()) - 1
        # Padding stands behind the tokens, where no token that counts sees it.
        return np.concatenate([fed, np.maximum(drafts[:, :width], 0)], axis=1), counts

    @torch.inference_mode()
    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only, in this order; rows (n,) integer indices. Their distributions stay."""
        chosen = np.array(rows, dtype=np.int64)
        self._check_rows(chosen)
        if len(chosen) == 0:
            self._clear()
            return
        self._probs = self._probs[torch.from_numpy(self.places(chosen)).to(self._device)]
        # The one name that all kinds of layers know, recurrent ones included.
        self._cache.reorder_cache(torch.from_numpy(chosen).to(self._device))
        self._pick(chosen)

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Which distributions are those of the given rows: (n,) indices -> indices, row by row."""
        first = np.cumsum(self._counts) - self._counts
        return np.concatenate([np.arange(first[row], first[row] + self._counts[row]) for row in rows])

    def _pick(self, chosen: np.ndarray) -> None:
        self._lengths, self._counts = self._lengths[chosen], self._counts[chosen]
        self._open = self._open[chosen]
        if self._slots:
            self._trim()

    @torch.inference_mode()
    def split(self, rows: np.ndarray, model: Any) -> StepDecoder:
        """Move rows, (n,) integer indices, to a decoder of their own; the others go on here, in their order.

        Args:
            rows: at least one.
            model: which the new decoder calls; it must compute the same.

        Raises:
            ModelError: the model's cache takes no newcomers, so that they could not come back.
        """
        chosen = np.array(rows, dtype=np.int64)
        self._check_rows(chosen)
        self._check_slots()
        other = copy.copy(self)
        other._model = model
        index = torch.from_numpy(chosen).to(self._device)
        other._cache = self._cache.part(index)
        other._probs = self._probs[torch.from_numpy(self.places(chosen)).to(self._device)]
        other._pick(chosen)
        self.keep(np.setdiff1d(np.arange(self.batch_size), chosen))
        return other

    @torch.inference_mode()
    def join(self, other: StepDecoder) -> None:
        """Append the rows of another decoder of the same model, which is not to be used after it; both are settled."""
        self._check_slots()
        self.settle()
        other.settle()
        if self.batch_size and other.batch_size:
            self._cache.join(other._cache)
        elif other.batch_size:
            self._cache = other._cache
        self._probs = torch.cat([self._probs, other._probs])
        self._lengths = np.concatenate([self._lengths, other._lengths])
        self._width = max(self._width, other._width)
        self._settled()

    @torch.inference_mode()
    def top_k(self, k: int, rows: np.ndarray | None = None) -> TopK:
        """The k most probable tokens of every distribution, or of the given ones, (n,) indices; k is cut to V."""
        probs = self._probs
        if rows is not None:
            chosen = np.array(rows, dtype=np.int64)
            self._check_places(chosen)
            probs = probs[torch.from_numpy(chosen).to(self._device)]
        return most_probable(probs, k)

    @torch.inference_mode()
    def full(self, rows: np.ndarray) -> np.ndarray:
        """All probabilities of the given distributions: (n,) indices -> (n, V) float32."""
        chosen = np.array(rows, dtype=np.int64)
        self._check_places(chosen)
        return self._probs[torch.from_numpy(chosen).to(self._device)].cpu().numpy()

    @torch.inference_mode()
    def exact(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Probabilities of given tokens: rows (n,) indices, ids (n, m) integer -> (n, m) float32."""
        chosen, wanted = np.array(rows, dtype=np.int64), np.array(ids, dtype=np.int64)
        self._check_places(chosen)
        if wanted.ndim != 2 or len(wanted) != len(chosen):
            raise ValueError(f"ids of shape {wanted.shape} came for {len(chosen)} rows: (n, m) is needed")
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self._vocab_size):
            raise ValueError(f"token ids must be in 0..{self._vocab_size - 1}")
        row, column = (torch.from_numpy(a).to(self._device) for a in (chosen[:, None], wanted))
        return self._probs[row, column].cpu().numpy()

    @torch.inference_mode()
    def draw(self, rows: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """A token of each given row, drawn from this member: rows (n,), uniforms (n,) in [0, 1) -> (n,) int64."""
        return np.array(
            [draw_token(row, float(u)) for row, u in zip(self.full(rows), uniforms, strict=True)],
            dtype=np.int64,
        )

    def _clear(self) -> None:
        self._cache, self._width = None, 0
        self._lengths = self._lengths[:0]
        self._probs = self._probs[:0]
        self._settled()

    def _forward(
        self,
        ids: np.ndarray,
        positions: np.ndarray,
        lengths: np.ndarray,
        width: int,
        cache: Any,
        tail: int = 1,
    ) -> tuple[Any, torch.Tensor]:
        """Read ids (b, q), the newest tokens of texts of these lengths; the cache and the probabilities (b, tail, V)."""
        mask = (np.arange(width) >= (width - lengths)[:, None]).astype(np.int64)
        extra: dict[str, Any] = {}
        if self._takes_positions:
            extra["position_ids"] = torch.from_numpy(positions).to(self._device)
        if self._takes_tail:
            extra["logits_to_keep"] = tail
        output = self._model(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        probs = output.logits[:, -tail:].float().softmax(dim=-1)
        # A softmax is NaN in all places or in none.
        if bool(torch.isnan(probs[..., 0]).any()):
            raise ModelError(
                "the model's probabilities are not numbers (NaN): its training diverged, lower the "
                "learning rate or use float32"
            )
        return output.past_key_values, probs

    def _check_length(self, longest: int) -> None:
        if self._max_positions is not None and longest > self._max_positions:
            raise ModelError(
                f"a text has {longest} tokens, the model's context holds {self._max_positions}: lower "
                "data.max_length or vote.max_new_tokens"
            )

    def _check_places(self, places: np.ndarray) -> None:
        n = len(self._probs)
        if places.ndim != 1 or (len(places) > 0 and (places.min() < 0 or places.max() >= n)):
            raise ValueError(f"rows must be indices in 0..{n - 1}")

    def _check_slots(self) -> None:
        if not self._slots:
            raise ModelError(
                f"the cache of {type(self._model).__name__} takes no new rows while others are being decoded"
            )

    def _check_rows(self, rows: np.ndarray) -> None:
        if rows.ndim != 1 or (len(rows) > 0 and (rows.min() < 0 or rows.max() >= self.batch_size)):
            raise ValueError(f"rows must be indices in 0..{self.batch_size - 1}")
