"""What a model gets wrong of a labelled split, in the units that boosting reweights, and what an uninformed one would."""

from __future__ import annotations

from typing import Any

import numpy as np

from ensemw2s.config import BoostingConfig
from ensemw2s.core.boosting import BoostingState, Units, choice_prior_error, unigram_prior_error
from ensemw2s.core.voting import choice_scores, pick_choice
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import MemberTask, ModelRef, TokenScores, TrainOutcome, add_costs, cost


class UnitErrors:
    """Errors on the labelled splits of one run.

    Args:
        ctx: the run.
        pool: supervisors, who score and warm up.

    Attributes:
        units: those of easy_train.
    """

    def __init__(self, ctx: RunContext, pool: SupervisorPool) -> None:
        self._ctx, self._pool = ctx, pool
        self._config = ctx.config.boosting
        self._train = ctx.splits["easy_train"]
        self.units = build_units(self._config, self._train)

    def wrong(self, slot: int, ref: ModelRef, split: str = "easy_train") -> tuple[np.ndarray, dict[str, Any]]:
        """Which units of a labelled split the model gets wrong, (n_units,) bool, and what it cost."""
        data = self._ctx.splits[split]
        method = "choice_scores" if self._config.unit == "choice" else "target_scores"
        scores: TokenScores = self._pool.submit(slot, method, ref, split).result()
        convert = data.choice_scores if self._config.unit == "choice" else data.target_scores
        scores = convert(ref.index, scores)
        units = self.units if split == "easy_train" else build_units(self._config, data)
        if self._config.unit == "choice":
            totals = choice_scores(
                scores.logprobs,
                data.choice_token_offsets,
                self._ctx.config.vote.choice_score,
                data.choice_bytes,
            )
            picked, _ = pick_choice(totals, data.choice_offsets)
            return units.wrong(picked != data.answers), scores.cost
        return units.wrong(~scores.hits), scores.cost

    def of_member(
        self, slot: int, ref: ModelRef, wrong: np.ndarray, state: BoostingState, outside: np.ndarray | None
    ) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
        """Weighted error on train and out of bag, uniform error on easy_val."""
        weights, out_of_bag = state.unit_weights, None
        if outside is not None:
            out_of_bag = weights.error_among(wrong, np.unpackbits(outside, count=len(weights)).view(np.bool_))
        val_wrong, spent = self.wrong(slot, ref, "easy_val")
        return {
            "train": weights.error(wrong),
            "out_of_bag": out_of_bag,
            "easy_val": float(val_wrong.mean()),
        }, [spent]

    def prior(self, index: int) -> float:
        """Error of the uninformed learner in the unit's own terms, uniform weights; computed once for each base."""
        name = f"prior-{index}"
        stage = self._ctx.store.done(name)
        if stage is None:
            self._ctx.store.begin(name)
            value, spent = self._measure_prior(index)
            stage = self._ctx.commit(name, {"prior_error": value, "rule": self._config.prior, "cost": spent})
        return float(stage.info["prior_error"])

    def _measure_prior(self, index: int) -> tuple[float, dict[str, Any]]:
        nothing = cost(0.0, 0, 0.0, "cpu")
        if self._config.prior == "chance":
            return choice_prior_error(np.diff(self._train.choice_offsets)), nothing
        if self._config.prior == "unigram":
            return unigram_prior_error(np.concatenate(self._train.targets)), nothing
        if self._config.prior == "classes":
            n_classes = self._ctx.splits.n_classes or len(self._ctx.splits.tokenizer)
            return 1.0 - 1.0 / n_classes, nothing
        ref, spent = ModelRef("weak", index), []
        if self._config.prior == "warmup":
            ref, trained = self._warm_up(index)
            spent.append(trained)
        wrong, scored = self.wrong(0, ref)
        return float(wrong.mean()), add_costs([*spent, scored])

    def _warm_up(self, index: int) -> tuple[ModelRef, dict[str, Any]]:
        n = min(
            len(self._train.samples),
            self._config.prior_warmup_steps * self._ctx.config.weak.training.batch_size,
        )
        rng = np.random.default_rng([self._ctx.config.seed, 103, index])
        rows = np.sort(rng.permutation(len(self._train.samples))[:n])
        lengths = np.diff(self._train.of_member(index).target_offsets)[rows]
        scratch = self._ctx.store.scratch(f"prior-{index}")
        output = scratch / "model"
        task = MemberTask(
            "prior: warm-up",
            index,
            self._ctx.config.seed,
            rows,
            np.ones(int(lengths.sum()), dtype=np.float32),
            lengths.astype(np.float64),
            output,
            scratch / "checkpoints",
            epochs=1,
        )
        outcome: TrainOutcome = self._pool.submit(0, "train_member", task).result()
        return ModelRef("weak", index, output), cost(
            outcome.seconds, outcome.tokens, outcome.flops, outcome.device
        )


def build_units(config: BoostingConfig, split: EncodedSplit) -> Units:
    """The units of a labelled split that a configuration reweights."""
    return Units.build(
        split.target_offsets,
        config.unit,
        window=config.window if config.unit == "window" else None,
        wrong_share=config.wrong_share,
    )
