"""Members of a vote as Ray actors, for both sides of `decode`: what our engine asks of them, and whole rows."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemw2s.config import ModelConfig

Span = tuple[float, float]


class Voter:
    """One member. Both sides use the same cached forward; when it runs is noted.

    Args:
        config: its model.
        threads: torch threads.
    """

    def __init__(self, config: ModelConfig, threads: int) -> None:
        from ensemw2s.engine.decoding.worker import ModelPool
        from ensemw2s.models.decoding import StepDecoder
        from ensemw2s.models.device import pick_device, set_threads
        from ensemw2s.models.loading import load_model

        set_threads(threads)
        self._spans: list[Span] = []
        forward, spans = StepDecoder._forward, self._spans

        def noted(decoder: StepDecoder, *args: Any) -> Any:
            begun = time.monotonic()
            result = forward(decoder, *args)
            spans.append((begun, time.monotonic()))
            return result

        StepDecoder._forward = noted  # type: ignore[assignment, method-assign]
        model = load_model(config, device=pick_device())
        self._pool = ModelPool([model])
        self._rows = StepDecoder(model, pad_id=0)

    def call(self, method: str, *args: Any) -> Any:
        """A call of the voting engine."""
        return self._pool.submit(0, method, 0, *args).result()

    def start(self, prompts: list[np.ndarray]) -> np.ndarray:
        """Read the prompts; the whole next-token distributions, (b, V) float32."""
        self._rows.start(prompts)
        return self._rows._probs.cpu().numpy()

    def advance(self, tokens: np.ndarray) -> np.ndarray:
        """Append one token (b,) to every row; the whole next-token distributions, (b, V) float32."""
        self._rows.advance(tokens)
        return self._rows._probs.cpu().numpy()

    def spans(self) -> list[Span]:
        """When the forwards since the last question ran, on the machine's monotonic clock."""
        noted = list(self._spans)
        self._spans.clear()
        return noted


class RayPending:
    """A call under way."""

    def __init__(self, pool: VoterPool, reference: Any) -> None:
        self._pool, self._reference = pool, reference

    def result(self) -> Any:
        import ray

        answer = ray.get(self._reference)
        self._pool.count(answer)
        return answer


class VoterPool:
    """The actors as the voting engine's pool.

    Args:
        actors: T of them.
        counting: add up the bytes of what is sent both ways.
    """

    def __init__(self, actors: Sequence[Any], *, counting: bool = False) -> None:
        self.size, self.bytes = len(actors), 0
        self._actors, self._counting = actors, counting

    def submit(self, slot: int, method: str, ref: int, *args: Any) -> RayPending:
        """Call member `slot`."""
        self.count(args)
        return RayPending(self, self._actors[slot].call.remote(method, *args))

    def count(self, thing: Any) -> None:
        """Add the size of something that travels."""
        if self._counting:
            self.bytes += len(pickle.dumps(thing, protocol=5))


def gather_decode(
    actors: Sequence[Any], alphas: np.ndarray, prompts: list[np.ndarray], n_tokens: int
) -> np.ndarray:
    """(b, n_tokens) greedy tokens by the vote on whole rows: one call to each member and step, mixed as they come.

    Single precision and one pass a member: the least that a gather can do.
    """
    import ray

    weights = (alphas / alphas.sum()).astype(np.float32)
    made = np.empty((len(prompts), n_tokens), dtype=np.int64)
    sent = ray.put(prompts)
    waiting = [actor.start.remote(sent) for actor in actors]
    for step in range(n_tokens):
        voted: np.ndarray | None = None
        for weight, reference in zip(weights, waiting, strict=True):
            share = ray.get(reference) * weight
            voted = share if voted is None else np.add(voted, share, out=voted)
        if voted is None:
            raise ValueError("no members")
        made[:, step] = voted.argmax(axis=1)
        waiting = []
        if step + 1 < n_tokens:
            waiting = [actor.advance.remote(made[:, step]) for actor in actors]
    return made


def covered(spans: Sequence[Span]) -> float:
    """Seconds in which at least one of the spans ran."""
    total, until = 0.0, -1.0
    for begun, ended in sorted(spans):
        total += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return total
