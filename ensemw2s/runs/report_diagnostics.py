"""The diagnostics of a report: tables and sentences from ``diagnostics`` of results.json.

Results that an earlier version wrote have none; then there is nothing to show.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensemw2s.runs.report_format import NOTHING, count, number, percent, points
from ensemw2s.runs.report_systems import BY_KEY, Results, ordered_splits
from ensemw2s.runs.report_tables import Table

LABELS = "hard_train"
_NO_MEMBER = "all members right"


def _part(results: Results, name: str) -> Mapping[str, Any]:
    return (results.get("diagnostics") or {}).get(name) or {}


def reliability_splits(results: Results) -> list[str]:
    """Splits whose calibration is known, the pseudo-labels last."""
    known = _part(results, "calibration")
    return [s for s in ordered_splits(known) if s != LABELS] + [s for s in known if s == LABELS]


def calibration(results: Results) -> Table | None:
    """Confidence against accuracy by system and split."""
    rows = []
    for split in reliability_splits(results):
        for system, found in _part(results, "calibration")[split].items():
            what = BY_KEY[system].label if split != LABELS else f"labels of: {BY_KEY[system].label.lower()}"
            gap = found["confidence"] - found["accuracy"]
            cells = [
                percent(found["confidence"]),
                percent(found["accuracy"]),
                points(gap),
                percent(found["ece"]),
            ]
            rows.append([split, what, *cells])
    header = ["questions", "system", "mean confidence", "accuracy", "over (+) or under (-)", "ECE"]
    note = (
        "ECE, the expected calibration error, is the mean distance between confidence and accuracy in ten bins of "
        "confidence; compare it within one set of questions only."
    )
    return Table("Calibration", header, rows, frozenset({2, 3, 4, 5}), [note]) if rows else None


def diversity(results: Results) -> Table | None:
    """How different the voting members are, by split."""
    names = ("answers_differ", "disagreement", "double_fault")
    rows = [
        [
            split,
            *(percent(found[name]) for name in names),
            number(found["q_statistic"], 2) if found["q_statistic"] is not None else NOTHING,
            ", ".join(percent(a) for a in found["accuracies"]),
        ]
        for split, found in _part(results, "diversity").items()
    ]
    header = ["questions", "answer differently", "one right", "both wrong", "Q", "accuracy of each member"]
    note = (
        "Means over pairs of members. Q (Yule) is 0 for members whose errors are independent and 1 for members with the "
        "same errors; a vote gains most where it is low and few are both wrong."
    )
    return Table("Diversity of the members", header, rows, frozenset({1, 2, 3, 4}), [note]) if rows else None


_SCORES = {"sum": "sum of log-probabilities", "mean": "mean over tokens", "bytes": "sum per byte"}
_SCORED = ("weak_single", "weak_ensemble", "student_single", "student_ensemble", "ceiling")


def choice_scores(results: Results) -> Table | None:
    """Accuracies had choices been scored in another way, by split; with what easy_val says of it."""
    found = _part(results, "choice_scores")
    if not found:
        return None
    own, accuracy = found["configured"], found["accuracy"]
    splits = [s for s in ordered_splits(accuracy) if s != LABELS] + [s for s in accuracy if s == LABELS]
    rows = [
        [
            split if split != LABELS else f"{LABELS} (the labels)",
            _SCORES[how] + (" (this run)" if how == own else ""),
            *(percent(systems[name]) if name in systems else NOTHING for name in _SCORED),
        ]
        for split in splits
        for how, systems in accuracy[split].items()
    ]
    header = ["questions", "score of a choice", *(BY_KEY[name].label for name in _SCORED)]
    notes = [
        "From the stored log-probabilities; the labels were given with this run's score, and students learned from them."
    ]
    for how, gap in found["differences"].items():
        if gap["low"] > 0:
            notes.append(
                f"On easy_val the vote is better with the {_SCORES[how]} ({points(gap['difference'])} points, {points(gap['low'])} to "
                f"{points(gap['high'])}): try vote.choice_score={how}."
            )
    return Table("Another score of a choice", header, rows, frozenset(range(2, len(header))), notes)


_VOTES = {
    "weighted": "weighted by the member weights",
    "uniform": "equal weights",
    "plurality": "one vote a member",
    "geometric": "geometric mean",
    "best_single": "best member on easy_val",
    "em_weights": "weights fitted to easy_val",
    "dawid_skene": "Dawid-Skene",
    "glad": "GLAD",
}


def vote_name(row: Mapping[str, Any]) -> str:
    """A way to vote in words, from a row of ``diagnostics.votes``."""
    return _VOTES[row["label_model"]] + (", calibrated" if row["calibrate"] else "")


def votes(results: Results) -> Table | None:
    """What other label models would have answered, the labels first; nothing where no members vote on choices."""
    rows = (results.get("diagnostics") or {}).get("votes")
    if not rows:
        return None
    splits = [LABELS, *(s for s in ordered_splits(rows[0]["splits"]) if s != LABELS)]

    def cell(row: Mapping[str, Any], split: str) -> str:
        found = row["splits"].get(split)
        if found is None:
            return NOTHING
        gap = f"{points(found['difference'])}, {points(found['low'])} to {points(found['high'])}"
        return percent(found["accuracy"]) + ("" if row["configured"] else f" ({gap})")

    body = [
        [vote_name(row) + (" (this run)" if row["configured"] else ""), *(cell(row, s) for s in splits)]
        for row in rows
    ]
    header = ["vote", *(s if s != LABELS else f"{LABELS} (the labels)" for s in splits)]
    notes = [
        "From the stored scores of the same members, with paired intervals of the difference from this run's vote; the students learned "
        "from this run's labels. Weights and temperatures are fitted to easy_val, whose own column flatters them."
    ]
    if any(s not in row["splits"] for row in rows for s in splits):
        notes.append("GLAD is left out where a split has many questions: try vote.label_model=glad.")
    return Table("Other ways to vote", header, body, frozenset(range(1, len(header))), notes)


def shared(results: Results) -> list[Table]:
    """By split: what becomes of the questions on which members agree on one wrong answer."""
    tables = []
    for split, found in _part(results, "shared_errors").items():
        rows = []
        for row in found:
            n = row["questions"]
            who = _NO_MEMBER if row["members"] == 0 else str(row["members"])

            def share(value: int | None, n: int = n) -> str:
                return NOTHING if value is None or not n else f"{count(value)} ({percent(value / n)})"

            cells = [share(row[key]) for key in ("labelled", "learned", "corrected")]
            rows.append([who, count(n), *cells])
        header = [
            "members with one wrong answer",
            "questions",
            "the vote says it",
            "the student says it",
            "the student is right",
        ]
        tables.append(Table(f"Shared errors on {split}", header, rows, frozenset({1, 2, 3, 4})))
    return tables


def imitation(results: Results) -> Table | None:
    """Whether students follow their teachers where these are wrong, by split."""
    rows = []
    for split, found in _part(results, "imitation").items():
        for teacher, row in found.items():
            wrong, right = row["teacher_wrong"], row["teacher_right"]
            cells = [
                *(
                    percent(row[key] / wrong) if wrong else NOTHING
                    for key in ("repeated", "corrected", "other")
                ),
                percent(row["unlearned"] / right) if right else NOTHING,
            ]
            rows.append([split, BY_KEY[f"student_{teacher}"].label, count(wrong), *cells])
    header = [
        "questions",
        "system",
        "its teacher is wrong",
        "it repeats the error",
        "it is right there",
        "another error there",
        "it is wrong where its teacher is right",
    ]
    note = (
        "A student learns what its labels have in common. Labels with fewer errors teach more; errors that follow a pattern, such "
        "as those that the members of an ensemble share, are repeated more often than errors that do not."
    )
    return (
        Table("Students and their teachers", header, rows, frozenset(range(2, 7)), [note]) if rows else None
    )


def rounds(results: Results) -> str | None:
    """How flat the optimum of the number of members is on the split that chose it."""
    found = (results.get("diagnostics") or {}).get("rounds") or ()
    chosen = results.get("selected_rounds")
    others = [row for row in found if row["members"] != chosen]
    if not others or chosen is None:
        return None
    same = [str(r["members"]) for r in others if r["low"] <= 0.0 <= r["high"]]
    split = (results.get("selection") or {}).get("split", "easy_val")
    if not same:
        return f"On {split} every other number of members is clearly different from T = {chosen}."
    which = " and ".join([", ".join(same[:-1]), same[-1]] if len(same) > 1 else same)
    return (
        f"The choice is flat: on {split} T = {which} cannot be told from T = {chosen} (the paired interval of the "
        "difference holds 0)."
    )
