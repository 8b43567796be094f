"""The AdaBoost rounds as the coordinator runs them: prior, draw, fine-tune, error, member weight, reweighting.

Each attempt at a member is one committed stage, so a run that is killed continues with the attempt it was in. While a
member trains, the ones before it score the splits that the reweighting does not wait for.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.config import BoostingConfig
from ensemw2s.core.boosting import (
    BoostingState,
    RoundDraw,
    Units,
    choice_prior_error,
    draw_round,
    effective_sample_size,
    member_decision,
    member_weight,
    unigram_prior_error,
    weighted_error,
)
from ensemw2s.core.voting import choice_scores, pick_choice
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.lost import lost_attempts, lost_members
from ensemw2s.engine.member_training import MemberTraining
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import MemberTask, ModelRef, TokenScores, TrainOutcome, add_costs, cost
from ensemw2s.engine.votes import PendingScores, collect_votes, submit_votes
from ensemw2s.errors import UserError


@dataclass(frozen=True)
class MemberRecord:
    """One attempt at a member; `folder` is relative to the run directory, `attempt` counts from 0."""

    attempt: int
    round: int
    base: str
    base_index: int
    folder: str
    seed: int
    error: float
    errors: dict[str, float | None]
    prior_error: float
    alpha: float
    kept: bool
    reason: str
    train_seconds: float
    train_tokens: int
    effective_sample_size: float

    def ref(self, run_dir: Path) -> ModelRef:
        """The weights of this member."""
        return ModelRef("weak", self.base_index, run_dir / self.folder)


def member_stage(attempt: int) -> str:
    """Name of the stage that commits an attempt."""
    return f"member-{attempt:02d}"


def load_records(ctx: RunContext) -> list[MemberRecord]:
    """The committed attempts, in order, without those that were lost while they were trained."""
    records: list[MemberRecord] = []
    lost = {int(info["attempt"]) for info in lost_members(ctx.store) if not info["trained"]}
    attempt = 0
    while True:
        if attempt not in lost:
            stage = ctx.store.done(member_stage(attempt))
            if stage is None:
                return records
            records.append(MemberRecord(**stage.info["record"]))
        attempt += 1


class Boosting:
    """The boosting loop of one run.

    Args:
        ctx: the run.
        pool: supervisors.
        after_round: called with the attempts so far when a member was kept; also for members that are there already.
    """

    def __init__(
        self,
        ctx: RunContext,
        pool: SupervisorPool,
        after_round: Callable[[list[MemberRecord]], None] = lambda so_far: None,
    ) -> None:
        self._ctx, self._pool, self._after_round = ctx, pool, after_round
        self._config = ctx.config.boosting
        self._train = ctx.splits["easy_train"]
        self._units = build_units(self._config, self._train)
        self._pending: dict[int, dict[str, PendingScores]] = {}
        self._left_out = lost_attempts(ctx.store)

    def run(self) -> list[MemberRecord]:
        """All attempts, kept and dropped; goes on from what is committed.

        Raises:
            UserError: no member is better than the prior.
        """
        records = load_records(self._ctx)
        state = self._load_state(records)
        lost = lost_members(self._ctx.store)
        untrained = {int(info["attempt"]) for info in lost if not info["trained"]}
        for n, before in enumerate(records, start=1):
            if before.kept and before.attempt not in self._left_out:
                self._after_round(records[:n])
        # A member that was lost before it was there is one round less.
        while len(state.alphas) < self._config.rounds - len(untrained) and not _stopped(records):
            attempt = next(i for i in count(_last(records) + 1) if i not in untrained)
            record, state = self._attempt(attempt, state)
            records.append(record)
            if record.kept:
                self._after_round(records)
                self._submit_votes(record)
        for record in self._voting(records):
            self._collect_votes(record)
        if not any(r.kept for r in records):
            last = records[-1]
            raise UserError(
                f"no weak supervisor is better than the prior (last error {last.error:.4f}, prior error {last.prior_error:.4f}): "
                "train longer (weak.training.epochs, learning_rate), or choose another boosting.prior or boosting.unit"
            )
        return records

    # -- one attempt -----------------------------------------------------------------------------------------

    def _attempt(self, attempt: int, state: BoostingState) -> tuple[MemberRecord, BoostingState]:
        config, store = self._config, self._ctx.store
        index = attempt % len(self._ctx.config.weak.models)
        prior = self._prior_error(index)
        name = member_stage(attempt)
        kept = len(state.alphas)
        staging = store.begin(name)
        folder = f"members/{attempt:02d}"
        draw = self._draw(attempt, kept, state)
        seed = self._ctx.config.seed * 1000 + attempt + 1
        own = self._train.draw_of(index, draw)
        task = MemberTask(
            f"round {kept + 1} of {config.rounds}: training",
            index,
            seed,
            own.rows,
            own.loss_weights,
            own.denominators,
            staging / folder,
            store.scratch(name),
        )
        training = MemberTraining(self._ctx, self._pool, attempt, task)
        # The member before scores its other splits meanwhile; its votes are committed when they are there.
        for before in self._voting(load_records(self._ctx)):
            self._collect_votes(before)
        outcome = training.result()

        ref = ModelRef("weak", index, staging / folder)
        wrong, scored = self._unit_wrong(attempt, ref)
        errors, extra = self._errors(attempt, ref, wrong, state, draw)
        chosen = errors[config.error_on]
        error = float(errors["train"] if chosen is None else chosen)  # type: ignore[arg-type]
        alpha, decision, new = self._judge(wrong, error, prior, state)
        reason = {
            "keep": "",
            "drop": f"error {error:.4f} is not below the prior error {prior:.4f}: dropped, another seed follows",
            "stop": f"error {error:.4f} is not below the prior error {prior:.4f}: the rounds stop",
        }[decision]
        if reason:
            store.event("member_dropped", attempt=attempt, reason=reason)
            self._ctx.say(f"round {kept + 1}: {reason}")
        record = MemberRecord(
            attempt,
            kept + 1,
            self._ctx.config.weak.models[index].display_name,
            index,
            folder,
            seed,
            error,
            errors,
            prior,
            alpha,
            decision == "keep",
            reason,
            round(outcome.seconds, 3),
            outcome.tokens,
            effective_sample_size(new.weights),
        )
        self._write_state(staging, attempt, new, wrong)
        # Of a run on storage the weights are on the node of who trained them.
        (staging / folder).mkdir(parents=True, exist_ok=True)
        (staging / folder / "member.json").write_text(
            json.dumps(asdict(record), indent=1) + "\n", encoding="utf-8"
        )
        trained = cost(outcome.seconds, outcome.tokens, outcome.flops, outcome.device)
        info = {
            "record": asdict(record),
            "decision": decision,
            "losses": [round(x, 6) for x in outcome.losses],
            "cost": add_costs([trained, scored, *extra]),
        }
        self._ctx.commit(name, info)
        text = (
            f"round {kept + 1}: error {error:.4f}, prior error {prior:.4f}, member weight {alpha:.3f}, "
            f"effective sample size {record.effective_sample_size:.0f} of {self._units.n_units}"
        )
        numbers = {"round": kept + 1, "rounds": config.rounds, "error": error, "prior_error": prior}
        self._ctx.say(text, {**numbers, "alpha": alpha})
        return record, new

    def _judge(
        self, wrong: np.ndarray, error: float, prior: float, state: BoostingState
    ) -> tuple[float, str, BoostingState]:
        """The member weight, whether the member is kept, and the state after it."""
        config = self._config
        if config.method != "adaboost":
            return 1.0, "keep", state.add(1.0, error)
        alpha = self._alpha(error, prior)
        decision = member_decision(alpha, state.drops, config.max_drops, config.on_useless)
        if decision != "keep":
            return alpha, decision, state.drop()
        return alpha, decision, state.update(wrong, alpha, config.max_weight, error=error)

    def _draw(self, attempt: int, kept: int, state: BoostingState) -> RoundDraw:
        rng = np.random.default_rng([self._ctx.config.seed, 101, attempt])
        weights = self._units.spread(state.weights)
        if self._config.method == "seeds":
            return draw_round(0, "loss", weights, self._train.target_offsets, rng)
        if self._config.method == "bagging":
            # Round 0 would take all samples; here the first member has its bootstrap, too.
            return draw_round(1, "sample_bootstrap", weights, self._train.target_offsets, rng)
        return draw_round(
            kept, self._config.reweight, weights, self._train.target_offsets, rng, self._config.sample_weight
        )

    def _alpha(self, error: float, prior: float) -> float:
        return member_weight(
            error, prior_error=prior, learning_rate=self._config.learning_rate, eps=self._config.epsilon
        )

    # -- errors ----------------------------------------------------------------------------------------------

    def _unit_wrong(
        self, slot: int, ref: ModelRef, split: str = "easy_train"
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Which units of a labelled split the model gets wrong, (n_units,) bool, and what it cost."""
        data = self._ctx.splits[split]
        method = "choice_scores" if self._config.unit == "choice" else "target_scores"
        scores: TokenScores = self._pool.submit(slot, method, ref, split).result()
        convert = data.choice_scores if self._config.unit == "choice" else data.target_scores
        scores = convert(ref.index, scores)
        units = self._units if split == "easy_train" else build_units(self._config, data)
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

    def _errors(
        self, slot: int, ref: ModelRef, wrong: np.ndarray, state: BoostingState, draw: RoundDraw
    ) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
        """Weighted error on train and out of bag, uniform error on easy_val."""
        out = self._units.whole(draw.out_of_bag)
        mass = float(state.weights[out].sum())
        val_wrong, spent = self._unit_wrong(slot, ref, "easy_val")
        return {
            "train": weighted_error(wrong, state.weights),
            "out_of_bag": weighted_error(wrong[out], state.weights[out]) if mass > 0 else None,
            "easy_val": float(val_wrong.mean()),
        }, [spent]

    # -- prior -----------------------------------------------------------------------------------------------

    def _prior_error(self, index: int) -> float:
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
        wrong, scored = self._unit_wrong(0, ref)
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
            np.ones(int(lengths.sum())),
            lengths.astype(np.float64),
            output,
            scratch / "checkpoints",
            epochs=1,
        )
        outcome: TrainOutcome = self._pool.submit(0, "train_member", task).result()
        return ModelRef("weak", index, output), cost(
            outcome.seconds, outcome.tokens, outcome.flops, outcome.device
        )

    # -- votes that nothing waits for ------------------------------------------------------------------------

    def _voting(self, records: list[MemberRecord]) -> list[MemberRecord]:
        return [r for r in records if r.kept and r.attempt not in self._left_out]

    def _submit_votes(self, record: MemberRecord) -> None:
        if record.attempt not in self._pending:
            self._pending[record.attempt] = submit_votes(
                self._ctx,
                self._pool,
                record.attempt,
                record.ref(self._ctx.run_dir),
                f"member-{record.attempt:02d}",
            )

    def _collect_votes(self, record: MemberRecord) -> None:
        self._submit_votes(record)
        collect_votes(self._ctx, f"member-{record.attempt:02d}", self._pending[record.attempt])

    # -- state -----------------------------------------------------------------------------------------------

    def _write_state(self, staging: Path, attempt: int, state: BoostingState, wrong: np.ndarray) -> None:
        folder = staging / "boosting"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"state-{attempt:02d}.npz", **state.to_arrays(), wrong=np.packbits(wrong))  # type: ignore[arg-type]

    def _load_state(self, records: list[MemberRecord]) -> BoostingState:
        if not records:
            return BoostingState.start(self._units)
        with np.load(self._ctx.run_dir / "boosting" / f"state-{_last(records):02d}.npz") as arrays:
            return BoostingState.from_arrays({k: arrays[k] for k in arrays.files})


def build_units(config: BoostingConfig, split: EncodedSplit) -> Units:
    """The units of a labelled split that a configuration reweights."""
    return Units.build(
        split.target_offsets,
        config.unit,
        window=config.window if config.unit == "window" else None,
        wrong_share=config.wrong_share,
    )


def _last(records: list[MemberRecord]) -> int:
    """The number of the last attempt; -1 before the first."""
    return records[-1].attempt if records else -1


def _stopped(records: list[MemberRecord]) -> bool:
    return bool(records) and not records[-1].kept and records[-1].reason.endswith("the rounds stop")


def unit_weights(ctx: RunContext, attempt: int) -> np.ndarray:
    """(n_units,) weights after an attempt, as committed."""
    with np.load(ctx.run_dir / "boosting" / f"state-{attempt:02d}.npz") as arrays:
        weights: np.ndarray = arrays["weights"]
    if not math.isclose(float(weights.sum()), 1.0, rel_tol=1e-9):
        raise ValueError("stored weights do not sum to 1")
    return weights
