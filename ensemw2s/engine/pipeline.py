"""The whole run, stage by stage: boost, vote, teach, compare, report. Every stage is committed; a rerun goes on.

The order keeps the truth of the test sets out of every decision: the number of voting members is chosen on easy_val,
and test truth is joined with the answers in the last stage only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.config import PreferenceConfig
from ensemw2s.core.label_models import keep_best
from ensemw2s.engine.answers import (
    Answers,
    Ensemble,
    correct,
    ensemble_answers,
    ensure_ensemble_answers,
    ensure_model_answers,
    model_answers,
)
from ensemw2s.engine.baselines import ensure_few_shot, random_noise_labels
from ensemw2s.engine.boosting import Boosting, MemberRecord, load_records
from ensemw2s.engine.checks import check_ceiling, check_errors, check_labels, taught_rows
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.lost import drop_member, lost_attempts
from ensemw2s.engine.merging import ensure_merged, voting_ensemble
from ensemw2s.engine.pool import Executor, SupervisorPool
from ensemw2s.engine.preferences import STUDENT as PREFERENCE
from ensemw2s.engine.preferences import preference_pairs
from ensemw2s.engine.results import build_results, write_results
from ensemw2s.engine.soft_labels import ensure_token_labels, labels_path, tokens_path
from ensemw2s.engine.students import TEACHERS, student_system
from ensemw2s.engine.tasks import ModelRef, ProgressEvent, StudentTask, Until, cost
from ensemw2s.engine.teaching import asks_teacher
from ensemw2s.errors import MemberLost
from ensemw2s.runs.store import disk_errors, file_hash


class Pipeline:
    """One run.

    Args:
        ctx: the run; its splits are committed already.
        executor: where the work runs.
    """

    def __init__(self, ctx: RunContext, executor: Executor) -> None:
        self._ctx, self._executor = ctx, executor

    def run(self, until: Until = "results") -> dict[str, Any]:
        """Run what is not committed yet; returns the results, or {} where it ends with the labels.

        Raises:
            UserError: the settings cannot give a result (no useful member, diverged training, no labels), or the disk is full.
        """
        with disk_errors(self._ctx.run_dir):
            return self._run(until)

    def _run(self, until: Until) -> dict[str, Any]:
        with self._executor.supervisors() as pool:
            while True:
                try:
                    records, ensemble, selected = self._vote(pool, until)
                    break
                except MemberLost as lost:
                    self._go_on_without(lost)
        if until == "labels":
            return {}
        self._students(("ceiling", "on_easy"))
        with self._executor.supervisors() as pool:
            self._score_students(pool, ("ceiling", "on_easy"))
        self._check(ensemble.first(1))
        last = (*TEACHERS, *(("noise",) if "random_noise" in self._ctx.config.evaluation.baselines else ()))
        self._students(last)
        with self._executor.supervisors() as pool:
            self._score_students(pool, last)
            second = self._ask_for_preferences(pool)
        if second:
            self._students((PREFERENCE,))
            self._check_preferences()
            with self._executor.supervisors() as pool:
                self._score_students(pool, (PREFERENCE,))
        return self._results(records, ensemble, selected)

    def _vote(self, pool: SupervisorPool, until: Until) -> tuple[list[MemberRecord], Ensemble, int]:
        """All that the weak models do: the rounds, the choice of the voters, the labels, the answers to the test sets."""
        ctx = self._ctx
        records = Boosting(ctx, pool, lambda so_far: self._after_round(pool, so_far)).run()
        ensemble = kept_ensemble(ctx, records)
        selected = self._select(pool, ensemble)
        ensure_merged(ctx, pool, ensemble, selected)
        voters = voting_ensemble(ctx, ensemble, selected)
        self._labels(pool, ensemble.first(1), voters)
        if until == "results":
            self._soft_labels(pool, ensemble.first(1), voters)
            self._baselines(pool)
            for t in range(1, len(ensemble.refs) + 1):
                ensure_ensemble_answers(ctx, pool, ensemble.first(t), ctx.test_splits)
            ensure_ensemble_answers(ctx, pool, voters, ["easy_val", *ctx.test_splits])
        return records, ensemble, selected

    def _go_on_without(self, lost: MemberLost) -> None:
        """Leave a member out; what was made with it is made again by the others."""
        records = {r.attempt: r for r in load_records(self._ctx)}
        own = records.get(lost.attempt)
        round_number = own.round if own is not None else 1 + sum(r.kept for r in records.values())
        drop_member(self._ctx, lost, round_number, trained=own is not None)

    def _after_round(self, pool: SupervisorPool, records: list[MemberRecord]) -> None:
        """Say how well the members so far label easy_val."""
        ctx = self._ctx
        ensemble = kept_ensemble(ctx, records)
        last = records[-1]
        if ctx.multiple_choice:
            ensure_model_answers(
                ctx, pool, ensemble.refs[-1], ensemble.systems[-1], ["easy_val"], last.attempt
            )
        ensure_ensemble_answers(ctx, pool, ensemble, ["easy_val"])
        accuracy = self._accuracy(ensemble)
        text = f"round {last.round}: {len(ensemble.refs)} member(s) have {accuracy:.1%} of easy_val right"
        metrics = {"round": float(last.round), "easy_val_accuracy": accuracy}
        ctx.report(ProgressEvent(text, 0, 0, metrics=metrics))

    def _accuracy(self, ensemble: Ensemble) -> float:
        """Share of easy_val that an ensemble has right."""
        data = self._ctx.splits["easy_val"].samples
        return float(correct(data, ensemble_answers(self._ctx, ensemble, "easy_val")).mean())

    # -- vote ------------------------------------------------------------------------------------------------

    def _select(self, pool: SupervisorPool, ensemble: Ensemble) -> int:
        """How many members vote, decided on easy_val; ties go to fewer members."""
        ctx = self._ctx
        rule = ctx.config.vote.rounds
        stage = ctx.store.done("select")
        if stage is None:
            scores = []
            for t in range(1, len(ensemble.refs) + 1):
                ensure_ensemble_answers(ctx, pool, ensemble.first(t), ["easy_val"])
                scores.append(self._accuracy(ensemble.first(t)))
            selected = len(scores)
            if rule == "validation":
                selected = int(np.argmax(scores)) + 1
            elif isinstance(rule, int):
                selected = min(rule, len(scores))
            ctx.store.begin("select")
            name = rule if isinstance(rule, str) else "fixed"
            stage = ctx.commit(
                "select", {"rule": name, "split": "easy_val", "scores": scores, "selected": selected}
            )
            ctx.say(
                f"accuracy on easy_val after 1..{len(scores)} members: "
                + ", ".join(f"{s:.3f}" for s in scores)
            )
        return int(stage.info["selected"])

    def _labels(self, pool: SupervisorPool, single: Ensemble, ensemble: Ensemble) -> None:
        """Pseudo-labels of hard_train by the first member alone and by the vote."""
        ctx = self._ctx
        for teacher, voters in zip(TEACHERS, (single, ensemble), strict=True):
            name = f"labels-{teacher}"
            if ctx.store.done(name) is not None:
                continue
            ensure_ensemble_answers(ctx, pool, voters, ["hard_train"])
            answers = ensemble_answers(ctx, voters, "hard_train")
            path = ctx.store.begin(name) / labels_path(teacher)
            self._write_labels(path, voters, answers)
            ctx.commit(name, {"members": len(voters.refs)})

    def _write_labels(self, path: Path, voters: Ensemble, answers: Answers) -> None:
        ctx = self._ctx
        samples = ctx.splits["hard_train"].samples
        columns: dict[str, Any] = {
            "id": [s.id for s in samples],
            "question": [s.question for s in samples],
            "confidence": answers.confidence,
            "members": pa.array([len(voters.refs)] * len(samples), pa.int32()),
        }
        own = None
        if ctx.multiple_choice:
            if answers.shares is not None:
                offsets = pa.array(ctx.splits["hard_train"].choice_offsets, pa.int32())
                columns["shares"] = pa.ListArray.from_arrays(offsets, pa.array(answers.shares, pa.float64()))
            own = [model_answers(ctx, s, "hard_train").values for s in voters.systems]
            columns["label"] = pa.array(answers.values, pa.int32())
            columns["label_text"] = [
                s.choices[int(v)] for s, v in zip(samples, answers.values, strict=True) if s.choices
            ]
            columns["votes"] = pa.array([list(v) for v in zip(*own, strict=True)], pa.list_(pa.int32()))
        else:
            columns["label_text"] = list(answers.values)
        columns["taught"] = self._taught([s.id for s in samples], answers, own)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, compression="zstd")

    def _soft_labels(self, pool: SupervisorPool, single: Ensemble, ensemble: Ensemble) -> None:
        """What the teachers think at each token of their labels, where students learn it."""
        if self._ctx.config.labels.targets != "tokens":
            return
        for teacher, voters in zip(TEACHERS, (single, ensemble), strict=True):
            ensure_token_labels(self._ctx, pool, teacher, voters, self._teaching(teacher)[1])

    def _taught(self, ids: list[str], answers: Answers, own: list[Any] | None) -> np.ndarray:
        """(n,) bool: which labels the student learns from; `own` holds each member's answers. An empty answer teaches nothing."""
        rule = self._ctx.config.labels
        taught = np.array([v != "" for v in answers.values], dtype=bool)
        if rule.keep_by == "all" or not taught.any():
            return taught
        values = answers.confidence
        if rule.keep_by == "agreement" and own is not None:
            values = (np.array(own) == np.array(answers.values)).mean(axis=0)
        answered = np.flatnonzero(taught)
        taught[answered] = keep_best(
            values[answered],
            share=rule.keep,
            then=answers.confidence[answered],
            ids=[ids[i] for i in answered],
        )
        return taught

    def _baselines(self, pool: SupervisorPool) -> None:
        """The models as they are."""
        splits = ["easy_val", *self._ctx.test_splits]
        ensure_model_answers(self._ctx, pool, ModelRef("weak", 0), "weak-0", splits)
        ensure_model_answers(self._ctx, pool, ModelRef("strong"), "strong", splits)
        if "few_shot" in self._ctx.config.evaluation.baselines:
            ensure_few_shot(self._ctx, pool)

    # -- students --------------------------------------------------------------------------------------------

    def _students(self, names: tuple[str, ...]) -> None:
        """Train a group of students; on Ray they share one group of workers, which is slow to start."""
        ctx = self._ctx
        tasks: list[StudentTask] = []
        twins: dict[str, str] = {}
        for name in names:
            stage = f"student-{name}"
            if ctx.store.done(stage) is not None:
                continue
            rule = ctx.config.strong.preference
            if name == PREFERENCE and rule is not None:
                task = self._preference_task(rule, stage)
                if task is None:
                    twins[stage] = student_system(ctx, "ensemble").removeprefix("student-")
                else:
                    tasks.append(task)
                continue
            split, labels = self._teaching(name)
            if name == "ensemble" and self._lesson(name) == self._lesson("single"):
                twins[stage] = "single"
                continue
            output = ctx.store.begin(stage) / "students" / name
            scratch = ctx.store.scratch(stage)
            teacher = name if name in TEACHERS and asks_teacher(ctx.config) else None
            tasks.append(StudentTask(name, split, labels, ctx.config.seed, output, scratch, teacher))
        group = "students-" + "-".join(names)
        shared = ctx.store.scratch(group)
        for task, outcome in zip(tasks, self._executor.train_students(tasks, shared), strict=True):
            spent = cost(outcome.seconds, outcome.tokens, outcome.flops, outcome.device)
            losses = [round(x, 6) for x in outcome.losses]
            ctx.commit(
                f"student-{task.name}",
                {
                    "steps": outcome.steps,
                    "losses": losses,
                    "samples": len(task.pairs) or _count(task.labels),
                    "cost": spent,
                },
            )
        for stage, other in twins.items():
            # Same questions, labels, start and seed: the same student.
            ctx.store.begin(stage)
            ctx.commit(stage, {"same_as": other, "cost": cost(0.0, 0, 0.0, "cpu")})
        ctx.store.clear_scratch(group)

    def _teaching(self, name: str) -> tuple[str, tuple[int | str | None, ...]]:
        """The split that a student learns from, and its labels."""
        ctx = self._ctx
        if name in ("ceiling", "on_easy"):
            split = "hard_train" if name == "ceiling" else "easy_train"
            return split, tuple(s.answer for s in ctx.splits[split].samples)
        if name == "noise":
            return "hard_train", random_noise_labels(ctx)
        column = "label" if ctx.multiple_choice else "label_text"
        values = pq.read_table(ctx.run_dir / labels_path(name), columns=[column]).column(column).to_pylist()
        pairs = zip(values, taught_rows(ctx, name), strict=True)
        # Runs of earlier versions count empty answers as taught.
        return "hard_train", tuple(v if taught and v != "" else None for v, taught in pairs)

    def _lesson(self, name: str) -> list[Any]:
        """All that a teacher's student learns; two of the same make the same student."""
        ctx = self._ctx
        lesson: list[Any] = [self._teaching(name)[1]]
        if asks_teacher(ctx.config):
            table = pq.read_table(ctx.run_dir / labels_path(name))
            kept = [c for c in ("confidence", "shares") if c in table.column_names]
            lesson.append(table.select(kept).to_pydict())
        tokens = ctx.run_dir / tokens_path(name)
        return [*lesson, file_hash(tokens) if tokens.is_file() else None]

    def _ask_for_preferences(self, pool: SupervisorPool) -> bool:
        """What the ensemble's student says to the questions of the labels; whether it has a second stage."""
        if self._ctx.config.strong.preference is None:
            return False
        system = student_system(self._ctx, "ensemble")
        ensure_model_answers(self._ctx, pool, self._student_ref(system), system, ["hard_train"])
        return True

    def _preference_task(self, rule: PreferenceConfig, stage: str) -> StudentTask | None:
        """The second stage of the ensemble's student; None where it is sure of nothing that it was not taught."""
        ctx, first = self._ctx, student_system(self._ctx, "ensemble")
        pairs = preference_pairs(ctx, first, rule)
        if not pairs:
            return None
        output = ctx.store.begin(stage) / "students" / PREFERENCE
        start = self._student_ref(first)
        return StudentTask(
            PREFERENCE,
            "hard_train",
            (),
            ctx.config.seed,
            output,
            ctx.store.scratch(stage),
            start=start,
            pairs=pairs,
        )

    def _check_preferences(self) -> None:
        """Warn where there was nothing to prefer; from what is committed, so that a run that goes on says it, too."""
        ctx = self._ctx
        if "same_as" not in ctx.store.require(f"student-{PREFERENCE}").info:
            return
        text = (
            "strong.preference: the ensemble's student is sure of no question whose label it was not taught, so there is no "
            "second stage: lower strong.preference.least_confidence or labels.keep"
        )
        ctx.warnings.append(text)
        ctx.say(f"warning: {text}")

    def _student_ref(self, system: str) -> ModelRef:
        return ModelRef("strong", 0, self._ctx.run_dir / "students" / system.removeprefix("student-"))

    def _score_students(self, pool: SupervisorPool, names: tuple[str, ...]) -> None:
        ctx = self._ctx
        for slot, name in enumerate(names):
            if student_system(ctx, name) == f"student-{name}":
                system = f"student-{name}"
                splits = ["easy_val", *ctx.test_splits]
                ensure_model_answers(ctx, pool, self._student_ref(system), system, splits, slot)

    def _check(self, single: Ensemble) -> None:
        ctx = self._ctx
        for warning in [*check_errors(ctx), *check_labels(ctx), *check_ceiling(ctx, single)]:
            ctx.warnings.append(warning)
            ctx.say(f"warning: {warning}")

    # -- results ---------------------------------------------------------------------------------------------

    def _results(self, records: list[MemberRecord], ensemble: Ensemble, selected: int) -> dict[str, Any]:
        from ensemw2s.runs.report import write_report

        ctx = self._ctx
        results = build_results(ctx, records, ensemble, selected)
        if ctx.store.done("results") is None:
            write_results(ctx, ctx.store.begin("results"), results, ensemble, selected)
            ctx.commit("results")
        if ctx.store.done("report") is None:
            write_report(ctx.run_dir)
            ctx.store.begin("report")
            ctx.commit("report")
        return results


def kept_ensemble(ctx: RunContext, records: list[MemberRecord]) -> Ensemble:
    """The kept members, in order, without those that were lost since.

    Free answers are voted token by token with these weights, so that a uniform vote is one of equal weights; choices have their
    label model.
    """
    lost = lost_attempts(ctx.store)
    kept = [r for r in records if r.kept and r.attempt not in lost]
    equal = ctx.config.vote.label_model == "uniform" and not ctx.multiple_choice
    return Ensemble(
        tuple(f"member-{r.attempt:02d}" for r in kept),
        tuple(r.ref(ctx.run_dir) for r in kept),
        np.array([1.0 if equal else r.alpha for r in kept]),
    )


def _count(labels: tuple[int | str | None, ...]) -> int:
    return sum(1 for label in labels if label is not None)
