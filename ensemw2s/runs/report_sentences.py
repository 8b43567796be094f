"""What the numbers of a run say, in sentences: functions of results.json that claim no more than it holds."""

from __future__ import annotations

from ensemw2s.runs.report_format import count, percent, percent_interval, points
from ensemw2s.runs.report_systems import (
    BY_KEY,
    MAIN_SPLIT,
    Results,
    compared_splits,
    comparison_of,
    ordered_splits,
    score_of,
    weight_unit,
)

PGR_UNDEFINED = "undefined (the interval of ceiling - single is not above 0)"
PGR_NO_GAP = "no gap to recover (the ceiling is below the single weak model)"

_MAIN_PAIRS = (("student_ensemble", "student_single"), ("weak_ensemble", "weak_single"))
_PGR_SIDES = {
    "student_single": "single",
    "student_ensemble": "ensemble",
    "student_preference": "preference",
}


def question(results: Results, strong: str | None = None) -> str:
    """One paragraph: what the run asked and how, for a reader who knows neither the method nor the code.

    Args:
        strong: name of the strong model where it is known.
    """
    splits, members = results["splits"], results.get("members") or ()
    n = {name: f"{count(split['n'])} " for name, split in splits.items()}
    bases = ", ".join(dict.fromkeys(member["base"] for member in members))
    weak = f" ({bases})" if bases else ""
    part = {"target tokens": "answer tokens", "samples": "questions"}.get(weight_unit(results))
    text = (
        "Can weak language models teach a strong one what they cannot do well themselves? Here "
        f"{n.get('easy_train', '')}easy questions come with their answers; "
        f"{n.get('hard_train', '')}hard ones do not. "
    )
    if len(members) > 1:
        text += (
            f"One after the other, {len(members)} weak language models{weak} were trained on the easy "
            f"answers; each time, the {part or 'parts of the answers'} that the ones before got wrong "
            f"counted more (boosting). {_vote(results.get('selected_rounds'), len(members))}"
        )
    else:
        text += (
            f"A weak language model{weak} was trained on the easy answers and answered the hard questions. "
        )
    if all(results.get(key) is None for key in ("student_single", "student_ensemble")):
        return (
            text + "No strong model was taught in this run. Is the ensemble better than one weak model alone?"
        )
    return text + (
        f"The strong model{f' ({strong})' if strong else ''} was trained on these labels: it is the student, "
        "and it was shown no true answer to a hard question. Is it better than the same strong model taught "
        "by one weak model alone? And how near does it come to the ceiling, the same strong model taught the "
        "true answers?"
    )


def _vote(voters: int | None, trained: int) -> str:
    if voters == 1:
        return "One of them then gave the answers to the hard questions. "
    who = "They" if voters in (None, trained) else f"{voters} of them"
    return f"{who} then voted on the answers to the hard questions, the better ones with more weight. "


def answers(results: Results, level: float = 0.95) -> list[str]:
    """One sentence for each test split, the main one first, computed from the numbers alone.

    Args:
        level: coverage of the stored intervals. A difference is called decided only when its interval
            excludes 0 and its p-value is below ``1 - level``.
    """
    sentences = [_answer(results, split, level) for split in compared_splits(results)]
    return sentences or ["This run has no test split, so it answers nothing."]


def _answer(results: Results, split: str, level: float) -> str:
    where = "" if split == MAIN_SPLIT else f"On {split}: "
    for a, b in _MAIN_PAIRS:
        first, second = score_of(results, a, split), score_of(results, b, split)
        if first is not None and second is not None:
            head = (
                f"{where}{BY_KEY[a].phrase} answers {percent_interval(first)} of {count(first['n'])} "
                f"{split if split == MAIN_SPLIT else 'further test'} questions right, "
                f"{BY_KEY[b].phrase} {percent_interval(second)}; "
            )
            return _capital(head + _difference_clause(results, split, a, b, level))
    for key in ("student_ensemble", "weak_ensemble", "student_single", "weak_single"):
        score = score_of(results, key, split)
        if score is not None:
            return _capital(
                f"{where}{BY_KEY[key].phrase} answers {percent_interval(score)} of {count(score['n'])} "
                "questions right; there is nothing of its kind to compare it with in this run."
            )
    return _capital(f"{where or f'On {split}: '}no trained system was measured.")


def _difference_clause(results: Results, split: str, a: str, b: str, level: float) -> str:
    comparison = comparison_of(results, split, a, b)
    if comparison is None:
        return "the run stored no paired comparison of the two, so it does not decide between them."
    gap = f"the difference {points(comparison['difference'])} points has a {level * 100:.4g} % interval "
    gap += f"{points(comparison['low'])}..{points(comparison['high'])}"
    better = decided(comparison, level)
    if better == 0:
        if comparison["low"] == comparison["high"] == 0.0:
            return f"{gap}: the two are right on the same questions."
        return f"{gap}, so this run does not decide between them."
    return f"{gap}, so in this run {BY_KEY[a if better > 0 else b].phrase} is the better one."


def decided(comparison: dict[str, float], level: float = 0.95) -> int:
    """1: ``a`` is better; -1: ``b`` is; 0: open. Interval and p-value must agree: neither alone decides."""
    if comparison["p_value"] >= 1.0 - level:
        return 0
    return 1 if comparison["low"] > 0.0 else -1 if comparison["high"] < 0.0 else 0


def verdict(comparison: dict[str, float], a: str, b: str, level: float = 0.95) -> str:
    """The outcome of one paired comparison for a table cell."""
    better = decided(comparison, level)
    return "not decided" if better == 0 else f"{BY_KEY[a if better > 0 else b].label} is better"


def caveats(results: Results, level: float = 0.95) -> list[str]:
    """What the reader must know to read the answer rightly; empty where nothing was compared."""
    notes = []
    if results.get("selected_rounds") == 1:
        notes.append(
            "The ensemble that voted has one member (T = 1): here the comparison of ensemble and single "
            "model says nothing about voting."
        )
    diagnostics = results.get("diagnostics") or {}
    first = diagnostics.get("first_member")
    if first is not None and first["low"] > 0:
        better = f"{points(first['difference'])} points, {points(first['low'])} to {points(first['high'])}"
        # Of members that were merged into one model there is no vote.
        alone = (
            '"Other ways to vote" has the best member alone; where' if diagnostics.get("votes") else "Where"
        )
        notes.append(
            f"The single model is the first member, and on easy_val member {first['best'] + 1} alone is better ({better}): what the "
            f"ensemble gains over the single model is partly that. {alone} "
            "weak.models names several models, put its model first for a fair comparison."
        )
    if compared_splits(results):
        notes.append(
            f"The {level * 100:.4g} % intervals say how far a number could move with other test questions. "
            f"They do not cover another training run: this run has one seed ({results['seed']})."
        )
    return notes


def pgr_text(results: Results, split: str, system: str) -> str | None:
    """The performance gap recovered by a student with its interval, or why there is none.

    Returns:
        None for a system that is no student, and where a system that the ratio needs was not measured.
    """
    side = _PGR_SIDES.get(system)
    needed = (system, "weak_single", "ceiling")
    if side is None or any(score_of(results, key, split) is None for key in needed):
        return None
    interval = ((results.get("pgr") or {}).get(split) or {}).get(side)
    if interval is None:
        return PGR_UNDEFINED
    # With a negative gap the ratio is a number, and a high one would mean that the student fell far.
    return PGR_NO_GAP if _gap(results, split) < 0 else percent_interval(interval)


def _gap(results: Results, split: str) -> float:
    return float(results["ceiling"][split]["value"]) - float(results["weak_single"][split]["value"])


def pgr_sentences(results: Results) -> list[str]:
    """One sentence for each test split on how much of the gap to the ceiling each student recovered."""
    sentences = []
    for split in compared_splits(results):
        texts = {key: pgr_text(results, split, key) for key in _PGR_SIDES}
        known = {key: text for key, text in texts.items() if text is not None}
        if not known:
            continue
        if set(known.values()) <= {PGR_UNDEFINED, PGR_NO_GAP}:
            sentences.append(f"Performance gap recovered (PGR) on {split}: {next(iter(known.values()))}.")
            continue
        shown = "; ".join(f"{BY_KEY[key].phrase}: {text}" for key, text in known.items())
        sentences.append(f"Performance gap recovered (PGR) on {split}: {shown}.")
    return sentences


def label_sentence(results: Results) -> str | None:
    """How often the labels that the students learned from are right; None where no hard data was labelled."""
    accuracy = results.get("label_accuracy") or {}
    single, ensemble = accuracy.get("single"), accuracy.get("ensemble")
    named = {"the single weak model": single, "the ensemble": ensemble}
    known = {name: score for name, score in named.items() if score is not None}
    if not known:
        return None
    shares = ", ".join(f"{name} {percent_interval(score)}" for name, score in known.items())
    n = max(score["n"] for score in known.values())
    return f"Right labels, of {count(n)} hard questions: {shares}. No choice was made by these numbers."


def selection(results: Results) -> str:
    """How the number of voting members T was chosen, and by which data."""
    chosen, rule = results.get("selected_rounds"), results.get("selection")
    if chosen is None or rule is None:
        return "No ensemble was formed, so there was no number of members T to choose."
    if rule["rule"] == "fixed":
        return f"T = {chosen}: the number of voting members was fixed in the settings."
    if rule["rule"] == "all":
        return f"T = {chosen}: every kept member votes, as the settings say."
    scores = rule.get("scores") or []
    text = f"T = {chosen} was chosen by the accuracy on {rule['split']}, which holds labelled easy questions"
    if scores:
        text += " (" + ", ".join(f"{t}: {percent(score)}" for t, score in enumerate(scores, start=1)) + ")"
    others = [name for name in ordered_splits(results["splits"]) if name in compared_splits(results)]
    return text + (f". No question of {' or '.join(others)} had a part in it." if others else ".")


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
