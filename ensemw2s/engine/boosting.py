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

import numpy as np

from ensemw2s.core.boosting import (
    BoostingState,
    LevelWeights,
    RoundDraw,
    draw_round,
    member_decision,
    member_weight,
)
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.lost import lost_attempts, lost_members
from ensemw2s.engine.member_training import MemberTraining
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.tasks import MemberTask, ModelRef, TrainOutcome, add_costs, cost
from ensemw2s.engine.unit_errors import UnitErrors
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
        self._errors = UnitErrors(ctx, pool)
        self._units = self._errors.units
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
        prior = self._errors.prior(index)
        name = member_stage(attempt)
        kept = len(state.alphas)
        staging = store.begin(name)
        folder = f"members/{attempt:02d}"
        seed = self._ctx.config.seed * 1000 + attempt + 1
        outcome, outside = self._train_member(attempt, index, seed, state, staging / folder)

        ref = ModelRef("weak", index, staging / folder)
        wrong, scored = self._errors.wrong(attempt, ref)
        errors, extra = self._errors.of_member(attempt, ref, wrong, state, outside)
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
            new.unit_weights.effective_sample_size(),
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

    def _train_member(
        self, attempt: int, index: int, seed: int, state: BoostingState, output: Path
    ) -> tuple[TrainOutcome, np.ndarray | None]:
        """Draw, train, and write the member; what it cost, and which units it did not see, packed (None: it saw all).

        What was drawn is let go here: it takes more memory than all that is kept of a round.
        """
        kept = len(state.alphas)
        draw = self._draw(attempt, kept, state)
        outside = None if draw.outside is None else self._units.whole_packed(draw.outside)
        own = self._train.draw_of(index, draw)
        name = f"round {kept + 1} of {self._config.rounds}: training"
        scratch = self._ctx.store.scratch(member_stage(attempt))
        task = MemberTask(name, index, seed, own.rows, own.loss_weights, own.denominators, output, scratch)
        training = MemberTraining(self._ctx, self._pool, attempt, task)
        # The member before scores its other splits meanwhile; its votes are committed when they are there.
        try:
            for before in self._voting(load_records(self._ctx)):
                self._collect_votes(before)
        except BaseException:
            training.close()
            raise
        return training.result(), outside

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
        weights = self._units.spread(state.unit_weights)
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
        return _read_state(self._ctx.run_dir, _last(records))


def _last(records: list[MemberRecord]) -> int:
    """The number of the last attempt; -1 before the first."""
    return records[-1].attempt if records else -1


def _stopped(records: list[MemberRecord]) -> bool:
    return bool(records) and not records[-1].kept and records[-1].reason.endswith("the rounds stop")


def unit_weights(ctx: RunContext, attempt: int) -> LevelWeights:
    """Weights of the units after an attempt, as committed."""
    weights = _read_state(ctx.run_dir, attempt).unit_weights
    if not math.isclose(weights.sum(), 1.0, rel_tol=1e-9):
        raise ValueError("stored weights do not sum to 1")
    return weights


def _read_state(run_dir: Path, attempt: int) -> BoostingState:
    path = run_dir / "boosting" / f"state-{attempt:02d}.npz"
    with np.load(path) as arrays:
        try:
            return BoostingState.from_arrays({k: arrays[k] for k in arrays.files})
        except ValueError as error:
            raise UserError(
                f"{path}: {error}; it is damaged, or another version of ensemw2s wrote it: run the configuration anew under another "
                "name"
            ) from error
