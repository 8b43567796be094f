"""A member's process in a server: what a weak supervisor does, and scores of whole texts with alternatives."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ensemw2s.engine.decoding.worker import DecodeWorker, SessionLost
from ensemw2s.engine.supervisor import WeakSupervisor
from ensemw2s.engine.tasks import ModelRef, TopK
from ensemw2s.errors import ModelError
from ensemw2s.models.decoding import StepDecoder


class TextReader(StepDecoder):
    """The distributions at every position of given texts, kept until the next ones are read.

    ``top_k``, ``exact`` and ``full`` answer as in a step-wise decode; a row is a position: text by text, that of the
    second token first.
    """

    @torch.inference_mode()
    def read(self, texts: Sequence[np.ndarray]) -> None:
        """Read texts (n_i,) together in one forward: sum of (n_i - 1) rows of V probabilities in float32.

        Raises:
            ModelError: a text longer than the model's context, or probabilities that are not numbers.
        """
        self._clear()
        lengths = np.array([len(t) for t in texts])
        self._check_length(int(lengths.max()))
        # Padded on the right: under a causal mask nothing before the padding sees it.
        ids = np.full((len(texts), int(lengths.max())), self._pad_id, dtype=np.int64)
        for i, text in enumerate(texts):
            ids[i, : len(text)] = text
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        logits = self._model(
            input_ids=torch.from_numpy(ids).to(self._device),
            attention_mask=torch.from_numpy(mask.astype(np.int64)).to(self._device),
            use_cache=False,
        ).logits
        # Position j says what comes at j + 1; the last one of a text says nothing about the text.
        wanted = torch.from_numpy(mask[:, 1:].copy()).to(self._device)
        self._probs = logits[:, :-1][wanted].float().softmax(dim=-1)
        self._lengths = np.zeros(len(self._probs), dtype=np.int64)
        # A softmax is NaN in all places or in none.
        if bool(torch.isnan(self._probs[:, 0]).any()):
            raise ModelError("the model's probabilities are not numbers (NaN): its training diverged")


class ServedSupervisor(WeakSupervisor):
    """A weak supervisor that also reads whole texts; one reading a model at a time."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._readings: dict[str, TextReader] = {}

    def text_begin(self, ref: ModelRef, texts: list[np.ndarray], k: int) -> TopK:
        """Read texts and send the k most probable tokens of every position."""
        model, pad_id = self._for_decoding(ref)
        reader = TextReader(model, pad_id=pad_id)
        self._readings[ref.key] = reader
        reader.read(texts)
        return TopK(*reader.top_k(k))

    def text_exact(self, ref: ModelRef, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Probabilities of given tokens of some positions: (n,), (n, m) -> (n, m) float32."""
        return self._reading(ref).exact(rows, ids)

    def text_more(self, ref: ModelRef, rows: np.ndarray, k: int) -> TopK:
        """The k most probable tokens of some positions."""
        return TopK(*self._reading(ref).top_k(k, rows))

    def text_full(self, ref: ModelRef, rows: np.ndarray) -> np.ndarray:
        """The whole distributions of some positions, (n, V) float32."""
        return self._reading(ref).full(rows)

    def text_end(self, ref: ModelRef) -> None:
        """Free the memory of the last reading."""
        self._readings.pop(ref.key, None)

    def _reading(self, ref: ModelRef) -> TextReader:
        try:
            return self._readings[ref.key]
        except KeyError:
            raise SessionLost(f"this worker has read no text for {ref.key}: it was restarted") from None


def beside(supervisor: ServedSupervisor) -> ServedSupervisor:
    """The same models for another caller, with rows and readings of its own."""
    other = copy.copy(supervisor)
    other._decodes, other._readings = DecodeWorker(), {}
    return other


def public_methods() -> frozenset[str]:
    """What a member may be asked by name."""
    found = inspect.getmembers(ServedSupervisor, inspect.isfunction)
    return frozenset(name for name, _ in found if not name.startswith("_") and not name.startswith("train"))
