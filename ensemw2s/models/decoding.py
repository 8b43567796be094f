"""One member's side of a step-wise voted decode: batched, with a key/value cache, rows coming and going."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ensemw2s.core.sampling import draw_token
from ensemw2s.errors import ModelError
from ensemw2s.models.cache import SlotCache, takes_slot_cache
from ensemw2s.models.facts import max_positions


class TopK(NamedTuple):
    """The k most probable tokens of each row.

    Attributes:
        ids: (B, k) int32, by probability descending, ties by id ascending (at the k-th place too).
        probs: (B, k) float32.
        residual: (B,) float32, no token that was left out is more probable than this; 0 where none was.
    """

    ids: np.ndarray
    probs: np.ndarray
    residual: np.ndarray


class StepDecoder:
    """Next-token distributions of a batch of texts that grow by one token a step.

    The batch is aligned at its texts' ends. Probabilities are a float32 softmax of the logits, kept until the
    next step, so that ``top_k``, ``exact`` and ``full`` of one step never disagree. They depend on each text
    alone, not on what other members do; which rows stand beside it changes them by rounding.

    A step is, in this order: ``keep`` the rows that go on, ``advance`` them by the tokens that were voted,
    ``enter`` new texts; then any of ``top_k``, ``exact``, ``full`` and ``draw``. Where ``can_enter`` is False
    (layers with a recurrent state, or a cache that layers share), new texts wait until the batch is empty.
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

    @property
    def batch_size(self) -> int:
        """Rows that are being decoded."""
        return len(self._lengths)

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
        if self.batch_size:
            self._cache.join(output)
            probs = torch.cat([self._probs, probs])
        else:
            self._cache = output
        self._probs = probs
        self._lengths = np.concatenate([self._lengths, lengths])
        self._width = max(self._width, width)

    @torch.inference_mode()
    def advance(self, tokens: np.ndarray) -> None:
        """Append one token to every row, tokens (B,) integer, and compute the next distributions.

        Raises:
            ValueError: not one token a row, or an id outside the vocabulary.
            ModelError: a row has become longer than the model's context.
        """
        given = np.asarray(tokens)
        if given.shape != (self.batch_size,) or self.batch_size == 0:
            raise ValueError(f"{given.shape} tokens came for {self.batch_size} rows")
        if given.min() < 0 or given.max() >= self._vocab_size:
            raise ValueError(f"token ids must be in 0..{self._vocab_size - 1}")
        positions = self._lengths[:, None].copy()
        self._lengths = self._lengths + 1
        self._width += 1
        self._check_length(int(self._lengths.max()))
        self._cache, self._probs = self._forward(
            given.astype(np.int64)[:, None], positions, self._lengths, self._width, self._cache
        )

    @torch.inference_mode()
    def keep(self, rows: np.ndarray) -> None:
        """Go on with these rows only, in this order; rows (n,) integer indices. Their distributions stay."""
        chosen = np.array(rows, dtype=np.int64)
        self._check_rows(chosen)
        if len(chosen) == 0:
            self._clear()
            return
        index = torch.from_numpy(chosen).to(self._device)
        # The one name that all kinds of layers know, recurrent ones included.
        self._cache.reorder_cache(index)
        self._probs = self._probs[index]
        self._lengths = self._lengths[chosen]
        if self._slots:
            self._width = int(self._lengths.max())
            self._cache.trim(self._width)

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
        other._cache, other._probs = self._cache.part(index), self._probs[index]
        other._lengths = self._lengths[chosen]
        other.keep(np.arange(len(chosen)))
        self.keep(np.setdiff1d(np.arange(self.batch_size), chosen))
        return other

    @torch.inference_mode()
    def join(self, other: StepDecoder) -> None:
        """Append the rows of another decoder of the same model, which is not to be used after it."""
        self._check_slots()
        if self.batch_size and other.batch_size:
            self._cache.join(other._cache)
        elif other.batch_size:
            self._cache = other._cache
        self._probs = torch.cat([self._probs, other._probs])
        self._lengths = np.concatenate([self._lengths, other._lengths])
        self._width = max(self._width, other._width)

    @torch.inference_mode()
    def top_k(self, k: int, rows: np.ndarray | None = None) -> TopK:
        """The k most probable next tokens of every row, or of the given ones, (n,) indices; k is cut to V.

        The residual is the (k+1)-th probability: no more than the k-th, nor than the mass that was left out,
        and exact.
        """
        if k < 1:
            raise ValueError(f"k is {k}, at least 1 is needed")
        k = min(k, self._vocab_size)
        probs = self._probs
        if rows is not None:
            chosen = np.array(rows, dtype=np.int64)
            self._check_rows(chosen)
            probs = probs[torch.from_numpy(chosen).to(self._device)]
        values, ids = torch.topk(probs, min(k + 1, self._vocab_size), dim=-1)
        whole = k == self._vocab_size
        residual = torch.zeros_like(values[:, 0]) if whole else values[:, k]
        # torch.topk takes any of the tokens that tie for the last place. Rows where that is a choice, because
        # the next one ties too, are sorted whole.
        contested = residual.new_zeros(0, dtype=torch.int64)
        if not whole:
            contested = (values[:, k] == values[:, k - 1]).nonzero()[:, 0]
        ids, order = ids[:, :k].sort(dim=-1)
        values = values[:, :k].gather(1, order)
        values, order = values.sort(dim=-1, descending=True, stable=True)
        ids = ids.gather(1, order)
        if len(contested) > 0:
            sorted_ids = probs[contested].sort(dim=-1, descending=True, stable=True).indices[:, :k]
            ids[contested] = sorted_ids
            values[contested] = probs[contested].gather(1, sorted_ids)
        return TopK(ids.to(torch.int32).cpu().numpy(), values.cpu().numpy(), residual.cpu().numpy())

    @torch.inference_mode()
    def full(self, rows: np.ndarray) -> np.ndarray:
        """All probabilities of the given rows: (n,) indices -> (n, V) float32."""
        chosen = np.array(rows, dtype=np.int64)
        self._check_rows(chosen)
        return self._probs[torch.from_numpy(chosen).to(self._device)].cpu().numpy()

    @torch.inference_mode()
    def exact(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Probabilities of given tokens: rows (n,) indices, ids (n, m) integer -> (n, m) float32."""
        chosen, wanted = np.array(rows, dtype=np.int64), np.array(ids, dtype=np.int64)
        self._check_rows(chosen)
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

    def _forward(
        self, ids: np.ndarray, positions: np.ndarray, lengths: np.ndarray, width: int, cache: Any
    ) -> tuple[Any, torch.Tensor]:
        """Read ids (b, q), the newest tokens of texts of these lengths; the cache and the (b, V) probabilities."""
        mask = (np.arange(width) >= (width - lengths)[:, None]).astype(np.int64)
        extra: dict[str, Any] = {}
        if self._takes_positions:
            extra["position_ids"] = torch.from_numpy(positions).to(self._device)
        if self._takes_tail:
            extra["logits_to_keep"] = 1
        output = self._model(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask).to(self._device),
            past_key_values=cache,
            use_cache=True,
            **extra,
        )
        probs = output.logits[:, -1].float().softmax(dim=-1)
        if bool(torch.isnan(probs).any()):
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

    def _check_slots(self) -> None:
        if not self._slots:
            raise ModelError(
                f"the cache of {type(self._model).__name__} takes no new rows while others are being decoded"
            )

    def _check_rows(self, rows: np.ndarray) -> None:
        if rows.ndim != 1 or (len(rows) > 0 and (rows.min() < 0 or rows.max() >= self.batch_size)):
            raise ValueError(f"rows must be indices in 0..{self.batch_size - 1}")
