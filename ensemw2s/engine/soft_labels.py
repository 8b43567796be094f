"""Soft labels of a teacher: the shares of the choices, and the vote's distribution at each token of its labels.

A token's soft label holds some tokens with their exact probabilities under the vote; what they leave over lies
somewhere else, and the losses take it so. Which tokens: of all that are among the `labels.top_k` most probable of any
member, those that are most probable under the vote.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.core.voting import mixture
from ensemw2s.engine.answers import Ensemble
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import offsets_of, with_labels
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import Texts, TokenValues, add_costs
from ensemw2s.errors import DataError


def labels_path(teacher: str) -> Path:
    """Where a teacher's pseudo-labels lie in the run directory."""
    return Path("labels") / f"{teacher}.parquet"


def tokens_path(teacher: str) -> Path:
    """Where the distributions at a teacher's label tokens lie in the run directory."""
    return Path("labels") / f"{teacher}.tokens.parquet"


def ensure_token_labels(
    ctx: RunContext,
    pool: SupervisorPool,
    teacher: str,
    voters: Ensemble,
    labels: tuple[int | str | None, ...],
) -> None:
    """Commit the vote's distributions at the tokens of a teacher's labels of hard_train, where that is not done.

    Args:
        ctx: the run.
        pool: the supervisors.
        teacher: single or ensemble.
        voters: the members.
        labels: one a sample; None leaves it out.
    """
    stage = f"soft-{teacher}"
    if ctx.store.done(stage) is not None:
        return
    samples = with_labels(ctx.splits["hard_train"].samples, labels)
    if not samples:
        raise DataError(
            f"the {teacher} teacher answered no question of hard_train: there is nothing to teach a student"
        )
    data = ctx.splits.encode(samples)
    texts: Texts = [(e.prompt, (t,)) for e, t in zip(data.encoded, data.targets, strict=True)]
    k = ctx.config.labels.top_k
    tops = _ask_all(pool, voters, "top_tokens", texts, k)
    candidates = candidate_ids(np.stack([top.values for top in tops]))
    exact = _ask_all(pool, voters, "probabilities_of", texts, candidates)
    voted = mixture(np.stack([e.values for e in exact]), voters.alphas)
    ids, probs = best_of(candidates, voted, k)
    path = ctx.store.begin(stage) / tokens_path(teacher)
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = offsets_of([len(t) for t in data.targets])
    table = pa.table(
        {
            "id": [s.id for s in samples],
            "ids": _nested(ids, offsets, pa.int32()),
            "probs": _nested(probs.astype(np.float32), offsets, pa.float32()),
        }
    )
    pq.write_table(table, path, compression="zstd")
    ctx.commit(stage, {"cost": add_costs([part.cost for part in (*tops, *exact)])})


@dataclass(frozen=True)
class TokenLabels:
    """Soft labels by sample id: (m_i, k) int32 token ids, -1 pads; (m_i, k) float32 probabilities."""

    ids: dict[str, np.ndarray]
    probs: dict[str, np.ndarray]


def read_token_labels(path: Path) -> TokenLabels:
    """The committed soft labels of a teacher."""
    table = pq.read_table(path)
    names = table.column("id").to_pylist()
    return TokenLabels(
        dict(zip(names, _arrays(table.column("ids").to_pylist(), np.int32), strict=True)),
        dict(zip(names, _arrays(table.column("probs").to_pylist(), np.float32), strict=True)),
    )


def candidate_ids(tops: np.ndarray) -> np.ndarray:
    """(T, n, k) tokens of the members -> (n, m) int32, each token once a row in ascending order, -1 behind them."""
    ranked = np.sort(np.moveaxis(tops, 0, 1).reshape(tops.shape[1], -1), axis=1)
    last = np.iinfo(ranked.dtype).max
    ranked[:, 1:][ranked[:, 1:] == ranked[:, :-1]] = last
    ranked.sort(axis=1)
    ranked[ranked == last] = -1
    return ranked[:, : int((ranked >= 0).sum(axis=1).max(initial=1))].astype(np.int32)


def best_of(ids: np.ndarray, probs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most probable of the candidates, both (n, m) -> (n, at most k), the most probable first, padding last."""
    ranks = np.where(ids >= 0, probs, -1.0)
    order = np.argsort(-ranks, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(ids, order, axis=1), np.take_along_axis(probs, order, axis=1)


def _ask_all(
    pool: SupervisorPool, voters: Ensemble, method: str, texts: Texts, argument: int | np.ndarray
) -> list[TokenValues]:
    pending = [pool.submit(m, method, ref, texts, argument) for m, ref in enumerate(voters.refs)]
    return [p.result() for p in pending]


def _nested(values: np.ndarray, offsets: np.ndarray, kind: pa.DataType) -> pa.Array:
    """(n, k) rows, divided over samples by offsets, as lists of lists."""
    n, k = values.shape
    rows = pa.ListArray.from_arrays(
        pa.array(np.arange(n + 1) * k, pa.int32()), pa.array(values.ravel(), kind)
    )
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), rows)


def _arrays(lists: list[list[list[float]]], dtype: type) -> list[np.ndarray]:
    return [np.array(rows, dtype=dtype) for rows in lists]
