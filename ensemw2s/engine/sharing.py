"""Equal work of several runs is done once: an executor that looks into a cache first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.keys import WorkKeys
from ensemw2s.engine.pool import Done, Executor, Pending, SupervisorPool
from ensemw2s.engine.tasks import MemberTask, StudentTask, TokenScores, TrainOutcome
from ensemw2s.runs.cache import Entry, ResultCache, link_tree
from ensemw2s.runs.store import RunStore

SCORES = ("choice_scores", "target_scores")


class SharingPool:
    """Supervisors that are asked only for what no run has computed before."""

    def __init__(
        self, pool: SupervisorPool, cache: ResultCache, keys: WorkKeys, found: Callable[[str], None]
    ) -> None:
        self.size = pool.size
        self._pool, self._cache, self._keys, self._found = pool, cache, keys, found
        self._for_all: Done | None = None

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        if method == "train_member":
            return self._member(slot, args[0])
        if method in SCORES:
            ref, split = args
            key = self._keys.scores(method, ref, split)
            entry = self._cache.get(key)
            if entry is None:
                return _Stored(
                    self._pool.submit(slot, method, ref, split),
                    lambda scores: self._cache.put(
                        key, scores.cost, {"logprobs": scores.logprobs, "hits": scores.hits}
                    ),
                )
            self._found(f"{ref.folder.name if ref.folder else ref.key}: {split}")
            arrays: dict[str, np.ndarray] = entry.arrays
            return Done(TokenScores(arrays["logprobs"], arrays["hits"], entry.payload))
        return self._pool.submit(slot, method, *args)

    def _member(self, slot: int, task: MemberTask) -> Pending:
        """Of several processes that train one member together the first, which is asked first, looks it up for all."""
        if task.share is not None and task.share.rank > 0:
            return self._pool.submit(slot, "train_member", task) if self._for_all is None else self._for_all
        key = self._keys.member(task)
        held = self._cache.lock([key])
        try:
            entry = self._cache.get(key)
            if entry is None:
                self._for_all = None
                pending = self._pool.submit(slot, "train_member", task)
                return _Stored(
                    pending, lambda outcome: self._cache.put(key, asdict(outcome), files=task.output), held
                )
        except BaseException:
            held.close()
            raise
        held.close()
        self._found(task.name)
        self._for_all = Done(_restore(entry, task.output))
        return self._for_all


class SharingExecutor:
    """An executor whose results go into a cache, and come out of it.

    Args:
        inner: does what no run has done before.
        cache: where the results lie.
        keys: of this run.
        found: called with the name of each piece of work that was found.
    """

    def __init__(
        self, inner: Executor, cache: ResultCache, keys: WorkKeys, found: Callable[[str], None]
    ) -> None:
        self._inner, self._cache, self._keys, self._found = inner, cache, keys, found

    @contextmanager
    def supervisors(self) -> Iterator[SupervisorPool]:
        with self._inner.supervisors() as pool:
            yield SharingPool(pool, self._cache, self._keys, self._found)

    def train_students(self, tasks: Sequence[StudentTask], scratch: Path) -> Iterator[TrainOutcome]:
        keys = [self._keys.student(task) for task in tasks]
        with self._cache.lock(keys):
            entries = [self._cache.get(key) for key in keys]
            missing = [task for task, entry in zip(tasks, entries, strict=True) if entry is None]
            trained = self._inner.train_students(missing, scratch) if missing else iter(())
            for task, key, entry in zip(tasks, keys, entries, strict=True):
                if entry is None:
                    outcome = next(trained)
                    self._cache.put(key, asdict(outcome), files=task.output)
                else:
                    self._found(f"student {task.name}")
                    outcome = _restore(entry, task.output)
                yield outcome


class _Stored:
    """Work under way whose result is stored when it is there; then other runs that wait for it may go on."""

    def __init__(
        self, pending: Pending, store: Callable[[Any], None], held: AbstractContextManager[Any] | None = None
    ) -> None:
        self._pending, self._store = pending, store
        self._held = nullcontext() if held is None else held
        self._value: Any = None
        self._done = False

    def close(self) -> None:
        """Wait for it no more: others may do it."""
        self._held.__exit__(None, None, None)

    def result(self) -> Any:
        if not self._done:
            with self._held:
                self._value = self._pending.result()
                self._store(self._value)
            self._done = True
        return self._value


def _restore(entry: Entry, output: Path) -> TrainOutcome:
    if entry.files is None:
        raise ValueError("a training's entry has files")
    output.parent.mkdir(parents=True, exist_ok=True)
    link_tree(entry.files, output)
    return TrainOutcome(**entry.payload)


def share(
    executor: Executor,
    config: ExperimentConfig,
    store: RunStore,
    say: Callable[[str], None],
    *,
    device: str,
    trainer: str,
) -> Executor:
    """The executor of a run, with ``runtime.cache`` where one is configured; see :class:`ensemw2s.engine.keys.WorkKeys`."""
    if config.runtime.cache is None:
        return executor

    def found(what: str) -> None:
        store.event("found_in_cache", work=what)
        say(f"found in the cache: {what}")

    keys = WorkKeys(config, store.folder, device, trainer)
    return SharingExecutor(executor, ResultCache(Path(config.runtime.cache)), keys, found)
