"""Classification by label words: boosting with unit choice and prior chance is K-class AdaBoost (SAMME)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import AdaBoostClassifier

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core.voting import choice_scores, pick_choice
from ensemw2s.engine.boosting import Boosting, unit_weights
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pool import LocalExecutor
from ensemw2s.engine.prepare import begin_run, check_directory, prepare

MakeConfig = Callable[..., dict[str, Any]]
CLASSES = ["buzz", "hiss", "roar"]


def write_texts(folder: Path, make_rows: Callable[[int], tuple[str, str]], n: int = 120) -> Path:
    path = folder / "texts.jsonl"
    rows = [dict(zip(("text", "label"), make_rows(i), strict=True)) for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Replayed(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator that predicts what a member predicted: the t-th one that is fitted, the t-th member."""

    predictions: ClassVar[list[np.ndarray]] = []
    weights: ClassVar[list[np.ndarray]] = []
    fitted = 0

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Replayed:
        self.classes_ = np.unique(y)
        self.own_ = Replayed.predictions[Replayed.fitted]
        Replayed.fitted += 1
        Replayed.weights.append(np.array(sample_weight))
        return self

    def predict(self, X: Any) -> np.ndarray:
        return self.own_[np.asarray(X)[:, 0].astype(int)]


def test_boosting_of_classes_is_samme(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """Member weights, errors and sample weights against scikit-learn, on the members' own predictions."""
    words = ("ant", "bee", "cat", "dog", "eel")
    # A fifth of the labels is noise, so that no member is perfect and every round has something to reweight.
    texts = write_texts(
        tmp_path, lambda i: (f"the {words[i % 5]} number {i}", CLASSES[(i % 5 + (i % 7 == 0)) % 3])
    )
    config = make_tiny(
        tmp_path,
        data__pool={
            "kind": "file",
            "path": str(texts),
            "columns": {"question": "text", "answer": "label", "classes": CLASSES},
        },
        boosting={"rounds": 3, "unit": "choice", "prior": "chance", "reweight": "loss", "learning_rate": 0.5},
        weak__training__epochs=3,
        weak__training__learning_rate=2e-2,
    )
    parsed = api.as_config(ExperimentConfig.model_validate(config))
    store = check_directory(parsed)
    prepared = prepare(parsed)
    begin_run(prepared, store, 0)
    ctx = RunContext(prepared.absolute, store, lambda event: None)
    pool = LocalExecutor(prepared.absolute, store.folder, threads=1, report=ctx.report).pool()
    records = Boosting(ctx, pool).run()
    assert [r.kept for r in records] == [True, True, True]

    data = ctx.splits["easy_train"]
    assert data.samples[0].choices == tuple(CLASSES)
    truth = data.answers
    predictions = []
    for record in records:
        scores = pool.submit(0, "choice_scores", record.ref(ctx.run_dir), "easy_train").result()
        totals = choice_scores(scores.logprobs, data.choice_token_offsets, "sum", data.choice_bytes)
        predictions.append(pick_choice(totals, data.choice_offsets)[0])
    assert len({p.tobytes() for p in predictions}) > 1

    Replayed.predictions, Replayed.fitted, Replayed.weights = predictions, 0, []
    rows = np.arange(len(truth))[:, None]
    model = AdaBoostClassifier(Replayed(), n_estimators=3, learning_rate=0.5).fit(rows, truth)
    assert model.n_classes_ == 3
    np.testing.assert_allclose([r.error for r in records], model.estimator_errors_, rtol=1e-9)
    np.testing.assert_allclose([r.alpha for r in records], model.estimator_weights_, rtol=1e-9)
    # The weights after a round are those that the next one is fitted with.
    for record, expected in zip(records, Replayed.weights[1:], strict=False):
        np.testing.assert_allclose(unit_weights(ctx, record.attempt).dense(), expected, rtol=1e-9)
    assert [r.prior_error for r in records] == pytest.approx([2 / 3] * 3)
