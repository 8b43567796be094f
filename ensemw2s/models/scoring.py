"""Teacher-forced scores: the log-probability of given tokens, and whether they are the model's first
choice."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from ensemw2s.errors import ModelError
from ensemw2s.models.cache import SlotCache, takes_slot_cache
from ensemw2s.models.facts import max_positions
from ensemw2s.models.heads import Places, Tail, divided, takes_positions
from ensemw2s.models.rows import Batch, Row, build_row, pad_rows, plan_batches, split_branches, tree_mask

Method = Literal["auto", "tree", "rows"]

#: Most float32 values that the output head may produce at a time: 256 MiB.
MAX_HEAD_VALUES = 2**26


@dataclass(frozen=True)
class ScoreRequest:
    """A prompt and the texts that may follow it.

    Attributes:
        prompt: (p,) integer token ids, p >= 1.
        continuations: at least one array of at least one token id.
    """

    prompt: np.ndarray
    continuations: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Scores:
    """Scores of all continuation tokens, flat: request by request, continuation by continuation.

    Attributes:
        logprobs: (n_tokens,) float32, natural logarithm of P(token | prompt, tokens before it).
        hits: (n_tokens,) bool, the token is the argmax of that distribution (ties go to the lowest id).
        offsets: (n_continuations + 1,) int64; continuation c, counted over all requests, is
            ``[offsets[c], offsets[c + 1])``.
        tokens_forwarded: tokens that went through the model, padding not counted.
    """

    logprobs: np.ndarray
    hits: np.ndarray
    offsets: np.ndarray
    tokens_forwarded: int


def score(
    model: Any,
    requests: Sequence[ScoreRequest],
    *,
    batch_tokens: int = 4096,
    method: Method = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Score every continuation of every request.

    Args:
        model: ``PreTrainedModel`` or ``PeftModel``; evaluated in evaluation mode, its mode is restored.
        requests: what to score; results come in this order.
        batch_tokens: most tokens of one forward pass, padding included (one long row may exceed it).
        method: ``tree`` feeds a prompt once for all of its continuations; ``rows`` feeds each continuation
            with a copy of its prompt and works for every architecture; ``auto`` takes the tree where the
            model's attention allows it. Both give the same values up to rounding (1e-5 in float32).
        progress: called after each batch with the rows done and the rows in all.

    Returns:
        The scores. Rounding aside they do not depend on ``batch_tokens`` or ``method``, and exactly the same
        call gives exactly the same result on a CPU with the same number of threads.

    Raises:
        ValueError: an empty prompt or continuation, a token id outside the vocabulary, or ``tree`` for a
            model whose attention cannot do it.
        ModelError: a sequence longer than the model's context, or probabilities that are not numbers (a model
            whose training diverged).
    """
    rows, offsets = plan_rows(model, requests, method, batch_tokens)
    logprobs = np.empty(int(offsets[-1]), dtype=np.float32)
    hits = np.empty(int(offsets[-1]), dtype=np.bool_)
    with torch.inference_mode():
        for tail in tails(model, rows, batch_tokens, progress):
            logprobs[tail.output], hits[tail.output] = tail.scores()
    check_numbers(logprobs)
    return Scores(logprobs, hits, offsets, sum(r.length for r in rows))


def check_numbers(logprobs: np.ndarray) -> None:
    """Raise ModelError for scores that are not numbers."""
    if np.isnan(logprobs).any():
        raise ModelError(
            "the model's probabilities are not numbers (NaN): its training diverged, lower the learning "
            "rate or use float32"
        )


def all_tails(
    model: Any,
    requests: Sequence[ScoreRequest],
    *,
    batch_tokens: int = 4096,
    method: Method = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tail]:
    """What :func:`score` makes its scores of, a batch at a time. The model is in evaluation mode until the iteration ends.
    Arguments and errors are those of `score`."""
    rows, _ = plan_rows(model, requests, method, batch_tokens)
    yield from tails(model, rows, batch_tokens, progress)


def plan_rows(
    model: Any, requests: Sequence[ScoreRequest], method: Method, batch_tokens: int, copies: int = 1
) -> tuple[list[Row], np.ndarray]:
    """The rows of some requests, and where each continuation starts in the flat result; raises as :func:`score`."""
    lengths = _check(requests, _vocab_size(model), max_positions(model.config))
    offsets = np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))
    return _make_rows(model, requests, offsets, method, batch_tokens, _max_tail(model, copies)), offsets


def _max_tail(model: Any, copies: int) -> int:
    """Most positions that the output head may run on at a time."""
    return max(1, MAX_HEAD_VALUES // _vocab_size(model) // copies)


def _vocab_size(model: Any) -> int:
    return int(model.config.get_text_config(decoder=True).vocab_size)


def tails(
    model: Any,
    rows: list[Row],
    batch_tokens: int,
    progress: Callable[[int, int], None] | None,
    copies: int = 1,
) -> Iterator[Tail]:
    """Batches of rows, with what the model says where they are scored; with several copies of each row, one after another, a
    tail for each copy."""
    max_tail = _max_tail(model, copies)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    in_parts = takes_slot_cache(base.config) and _accepts(base, "past_key_values")
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        done = 0
        for members in _plan(rows, longest_tree_row(model), batch_tokens, max_tail):
            batch = pad_rows([rows[i] for i in members], device)
            sequences = all(rows[i].is_sequence for i in members)
            if len(members) == 1 and sequences and batch.n_tail > max_tail and in_parts:
                for part, logits in _parts(model, batch, max_tail, copies):
                    places = Places.of(part)
                    for copy in range(copies):
                        yield _tail(logits[copy][places.column], places, copy)
            else:
                for places, logits in _logits_of(model, batch, sequences, copies, max_tail):
                    for copy in range(copies):
                        yield _tail(logits[copy::copies], places, copy)
            done += len(members)
            if progress is not None:
                progress(done, len(rows))
    finally:
        model.train(was_training)


def _plan(rows: list[Row], limit: int | None, max_tokens: int, max_tail: int) -> Iterator[list[int]]:
    """Batches of rows; none has rows on both sides of the limit for trees, whose mask leaves a sliding window out."""
    beyond = [limit is not None and row.length > limit for row in rows]
    for side in (True, False):
        own = [i for i, there in enumerate(beyond) if there == side]
        for batch in plan_batches([rows[i] for i in own], max_tokens=max_tokens, max_tail=max_tail):
            yield [own[i] for i in batch]


def _tail(logits: torch.Tensor, places: Places, copy: int) -> Tail:
    return Tail(logits, places.place, places.targets, places.output, copy)


def longest_tree_row(model: Any) -> int | None:
    """Longest tree-masked row that the model computes rightly: None where there is no limit, 0 where it
    cannot at all.

    A tree needs attention that takes any mask (sdpa or eager), positions that the caller gives, and layers
    without a memory that runs along the row (recurrent, linear attention). A sliding window counts places in
    the row, not positions in the text, so rows must be no longer than the window.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config(decoder=True)
    if (
        getattr(config, "_attn_implementation", None) not in ("sdpa", "eager")
        or not getattr(base, "_supports_attention_backend", False)
        or getattr(base, "_is_stateful", False)
        or not _accepts(base, "position_ids")
    ):
        return 0
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"} or getattr(config, "attention_chunk_size", None):
        return 0
    window = getattr(config, "sliding_window", None)
    return int(window) if window and (not kinds or "sliding_attention" in kinds) else None


def _check(requests: Sequence[ScoreRequest], vocab_size: int, longest: int | None) -> np.ndarray:
    """Lengths of all continuations, (n_continuations,) int64; raises for what cannot be scored."""
    lengths: list[int] = []
    for i, request in enumerate(requests):
        if len(request.prompt) == 0:
            raise ValueError(
                f"request {i} has an empty prompt: at least one token must come before what is scored"
            )
        if not request.continuations:
            raise ValueError(f"request {i} has no continuations")
        sizes = [len(c) for c in request.continuations]
        if min(sizes) == 0:
            raise ValueError(
                f"continuation {sizes.index(0)} of request {i} is empty: there is nothing to score"
            )
        ids = np.concatenate([request.prompt, *request.continuations])
        if not np.issubdtype(ids.dtype, np.integer) or ids.min() < 0 or ids.max() >= vocab_size:
            raise ValueError(
                f"request {i} has token ids outside 0..{vocab_size - 1}: was it encoded with another "
                "tokenizer?"
            )
        if longest is not None and len(request.prompt) + max(sizes) - 1 > longest:
            n = len(request.prompt) + max(sizes)
            raise ModelError(
                f"request {i} has {n} tokens, the model's context holds {longest}: lower data.max_length"
            )
        lengths += sizes
    return np.array(lengths, dtype=np.int64)


def _make_rows(
    model: Any,
    requests: Sequence[ScoreRequest],
    offsets: np.ndarray,
    method: Method,
    batch_tokens: int,
    max_tail: int,
) -> list[Row]:
    limit = longest_tree_row(model)
    longest = max((len(r.prompt) + max(map(len, r.continuations)) - 1 for r in requests), default=0)
    possible = limit is None or longest <= limit
    if method not in ("auto", "tree", "rows"):
        raise ValueError(f"method {method!r} is not one of auto, tree, rows")
    if method == "tree" and not possible:
        raise ValueError(
            f"the attention of {type(model).__name__} cannot score rows of {longest} tokens as trees: use "
            "auto or rows"
        )
    max_tokens = batch_tokens if limit is None else min(batch_tokens, limit)
    rows: list[Row] = []
    first = 0
    for request in requests:
        texts = request.continuations
        starts = offsets[first : first + len(texts)].tolist()
        longest = len(request.prompt) + max(map(len, texts)) - 1
        if method != "rows" and (limit is None or longest <= limit):
            groups = split_branches(len(request.prompt), [len(c) for c in texts], max_tokens, max_tail)
        else:
            groups = [(i, i + 1) for i in range(len(texts))]
        rows += [build_row(request.prompt, texts[a:b], starts[a:b]) for a, b in groups]
        first += len(texts)
    return rows


def _logits_of(
    model: Any, batch: Batch, sequences: bool, copies: int, max_tail: int
) -> Iterator[tuple[Places, torch.Tensor]]:
    """Places of the batch and their (U * copies, V) logits, the copies of a place one after another; the head of a model that can be
    divided runs on at most `max_tail` of them."""
    places = Places.of(batch)
    if sequences:
        mask = (batch.branch >= 0).long()
    else:
        mask = _as_model_mask(model, tree_mask(batch.branch))
    ids, mask, positions = (
        x.repeat_interleave(copies, dim=0) for x in (batch.input_ids, mask, batch.positions)
    )
    inputs = {"input_ids": ids, "attention_mask": mask}
    parts = divided(model) if copies == 1 else None
    if parts is None:
        logits = forward_tail(model, inputs, positions, batch.n_tail)
        rows = places.row[:, None] * copies + torch.arange(copies, device=ids.device)
        yield places, logits[rows.flatten(), places.column.repeat_interleave(copies)]
        return
    body, head = parts
    extra = {"position_ids": positions} if takes_positions(body) else {}
    hidden = body(**inputs, **extra, use_cache=False).last_hidden_state
    for part in places.parts(max_tail):
        yield part, head(hidden[part.row, part.column + (ids.shape[1] - batch.n_tail)])


def _parts(model: Any, batch: Batch, max_tail: int, copies: int) -> Iterator[tuple[Batch, torch.Tensor]]:
    """A long text, the only row of a batch, read a part at a time behind what was read before: the output head runs on at most
    `max_tail` positions."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    length, cache = batch.input_ids.shape[1], SlotCache()
    source = batch.column + (length - batch.n_tail)
    begin, end = 0, length - batch.n_tail + max_tail
    while begin < length:
        n_tail = min(max_tail, end - begin)
        ids, positions = (
            x[:, begin:end].repeat_interleave(copies, dim=0) for x in (batch.input_ids, batch.positions)
        )
        extra: dict[str, Any] = {"position_ids": positions} if _accepts(base, "position_ids") else {}
        if _accepts(base, "logits_to_keep"):
            extra["logits_to_keep"] = n_tail
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, **extra)
        here = (source >= end - n_tail) & (source < end)
        part = Batch(
            input_ids=batch.input_ids[:, begin:end],
            positions=batch.positions[:, begin:end],
            branch=batch.branch[:, begin:end],
            n_tail=n_tail,
            row=batch.row[here],
            column=source[here] - (end - n_tail),
            targets=batch.targets[here],
            output=batch.output[here.cpu().numpy()],
        )
        yield part, output.logits[:, -n_tail:]
        begin, end = end, min(length, end + max_tail)


def forward_tail(model: Any, inputs: dict[str, Any], positions: torch.Tensor, n_tail: int) -> torch.Tensor:
    """Logits (B, n_tail, V) of the last positions; arguments that an architecture does not know are left
    out."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    extra: dict[str, Any] = {}
    if _accepts(base, "position_ids"):
        extra["position_ids"] = positions
    if _accepts(base, "logits_to_keep"):
        extra["logits_to_keep"] = n_tail
    logits: torch.Tensor = model(**inputs, **extra, use_cache=False).logits
    return logits[:, -n_tail:]


def _as_model_mask(model: Any, allowed: torch.Tensor) -> torch.Tensor:
    """sdpa takes the boolean mask; eager attention adds a float one to its scores."""
    config = model.config.get_text_config(decoder=True)
    if config._attn_implementation == "sdpa":
        return allowed
    dtype = next(model.parameters()).dtype
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def _accepts(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters
