from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.config import DataConfig, FileSource, SplitConfig
from ensemw2s.data.samples import Sample
from ensemw2s.data.splits import Splits, divide_pool, make_splits
from ensemw2s.errors import DataError

WriteLines = Callable[..., Path]


def rows(count: int, prefix: str = "s", **more: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"{prefix}{i}", "question": f"{prefix} {i}?", "answer": f"{i}"} | more for i in range(count)
    ]


def ids(splits: Splits) -> dict[str, list[str]]:
    return {name: [s.id for s in samples] for name, samples in splits.samples.items()}


def pool_config(path: Path, duplicates: Any = "error", **split: Any) -> DataConfig:
    return DataConfig(pool=FileSource(path=str(path)), split=SplitConfig(**split), duplicates=duplicates)


def test_random_split_is_the_rank_of_the_seeded_hash(write_jsonl: WriteLines) -> None:
    splits = make_splits(pool_config(write_jsonl(rows(100)), seed=5))
    got = ids(splits)
    order = sorted((f"s{i}" for i in range(100)), key=lambda i: hashlib.sha256(f"5:{i}".encode()).hexdigest())
    # 50 hard, of which 15 test; 50 easy, of which 10 validation.
    assert set(got["test"]) == set(order[:15])
    assert set(got["hard_train"]) == set(order[15:50])
    assert set(got["easy_val"]) == set(order[50:60])
    assert set(got["easy_train"]) == set(order[60:])
    for part in got.values():
        assert part == sorted(part, key=lambda i: int(i[1:]))  # the order of the file
    assert list(got) == ["easy_train", "easy_val", "hard_train", "test"]
    assert splits.roles == {
        "easy_train": "train",
        "easy_val": "validation",
        "hard_train": "unlabeled",
        "test": "test",
    }


pools = st.lists(
    st.tuples(st.text("abc123", min_size=1, max_size=5), st.integers(0, 4)),
    min_size=8,
    unique_by=lambda pair: pair[0],
)


@given(pools, st.randoms(use_true_random=False), st.integers(0, 3))
def test_division_is_complete_disjoint_and_independent_of_order(pool: Any, random: Any, seed: int) -> None:
    samples = [Sample(id, id, None, "a", float(level)) for id, level in pool]
    shuffled = random.sample(samples, len(samples))
    easy, hard = divide_pool(samples, SplitConfig(method="random", seed=seed, hard_fraction=0.4))
    again = divide_pool(shuffled, SplitConfig(method="random", seed=seed, hard_fraction=0.4))
    assert [{s.id for s in side} for side in again] == [{s.id for s in easy}, {s.id for s in hard}]
    assert sorted(s.id for s in easy + hard) == sorted(s.id for s in samples)
    assert len(hard) == int(0.4 * len(samples) + 0.5)


def levels(samples: list[Sample]) -> list[float]:
    return sorted(s.difficulty for s in samples if s.difficulty is not None)


@given(pools, st.randoms(use_true_random=False))
def test_quantile_takes_at_least_its_share_and_splits_no_tie(pool: Any, random: Any) -> None:
    samples = [Sample(id, id, None, "a", float(level)) for id, level in pool]
    split = SplitConfig(method="difficulty", easy_quantile=0.5)
    ordered = levels(samples)
    if ordered[(len(ordered) - 1) // 2] == ordered[-1]:
        with pytest.raises(DataError, match="are easy"):
            divide_pool(samples, split)
        return
    easy, hard = divide_pool(samples, split)
    assert levels(easy)[-1] < levels(hard)[0]
    assert len(easy) >= 0.5 * len(samples)
    # Without its hardest level the easy side would be below its share.
    assert len([s for s in easy if s.difficulty != levels(easy)[-1]]) < 0.5 * len(samples)
    again = divide_pool(random.sample(samples, len(samples)), split)
    assert {s.id for s in again[0]} == {s.id for s in easy}


def test_quantile_of_a_whole_number_of_samples_is_not_rounded_up() -> None:
    # Some of these products lie a little above the whole number in binary, such as 0.55 * 100.
    hundred = [Sample(f"{i}", f"{i}", None, "a", float(i)) for i in range(100)]
    for share in (7, 14, 28, 55, 56, 57, 99):
        easy, _ = divide_pool(hundred, SplitConfig(method="difficulty", easy_quantile=share / 100))
        assert len(easy) == share


def test_threshold_is_inclusive_and_must_divide() -> None:
    samples = [Sample(f"{i}", f"{i}", None, "a", float(i)) for i in range(5)]
    easy, hard = divide_pool(samples, SplitConfig(method="difficulty", easy_threshold=2))
    assert ([s.id for s in easy], [s.id for s in hard]) == (["0", "1", "2"], ["3", "4"])
    with pytest.raises(DataError, match=r"are hard at difficulty <= -1 \(they reach from 0 to 4\)"):
        divide_pool(samples, SplitConfig(method="difficulty", easy_threshold=-1))
    with pytest.raises(DataError, match="are easy at difficulty <= 4"):
        divide_pool(samples, SplitConfig(method="difficulty", easy_threshold=4))


def test_difficulty_needs_a_number_for_every_sample(write_jsonl: WriteLines) -> None:
    pool = rows(4, difficulty=1) + rows(2, "n")
    with pytest.raises(DataError, match=r"2 of 6 samples of data.pool have no difficulty \(first: 'n0'\)"):
        make_splits(pool_config(write_jsonl(pool), method="difficulty", easy_threshold=1))


def given_config(write: WriteLines, **sources: list[dict[str, Any]]) -> dict[str, Any]:
    paths = {name: FileSource(path=str(write(data, f"{name}.jsonl"))) for name, data in sources.items()}
    return paths | {"split": SplitConfig(method="given")}


def test_given_with_test_sets_carves_nothing_from_the_hard_side(write_jsonl: WriteLines) -> None:
    fields = given_config(write_jsonl, easy=rows(10, "e"), hard=rows(10, "h"), test=rows(4, "t"))
    extra = FileSource(path=str(write_jsonl(rows(3, "o"), "ood.jsonl")))
    splits = make_splits(DataConfig(**fields, extra_tests={"ood": extra}))
    assert {name: len(part) for name, part in splits.samples.items()} == {
        "easy_train": 8,
        "easy_val": 2,
        "hard_train": 10,
        "test": 4,
        "ood": 3,
    }
    assert splits.roles["ood"] == "further_test"


def test_given_without_test_set_takes_it_from_the_hard_side(write_jsonl: WriteLines) -> None:
    splits = make_splits(DataConfig(**given_config(write_jsonl, easy=rows(10, "e"), hard=rows(10, "h"))))
    assert len(splits.samples["test"]) == 3
    assert {s.id for s in splits.samples["test"] + splits.samples["hard_train"]} == {
        f"h{i}" for i in range(10)
    }


def test_paths_start_from_the_base_folder(write_jsonl: WriteLines) -> None:
    path = write_jsonl(rows(20))
    config = DataConfig(pool=FileSource(path=path.name))
    assert len(make_splits(config, base_dir=path.parent).samples["test"]) == 3


def test_hard_truth_may_be_missing_only_when_asked_for(write_jsonl: WriteLines) -> None:
    hard = [{"id": "h", "question": "h?"}]
    fields = given_config(write_jsonl, easy=rows(10, "e"), hard=hard, test=rows(4, "t"))
    with pytest.raises(DataError, match=r"^data.hard: .*hard.jsonl:1: no column 'answer'"):
        make_splits(DataConfig(**fields))
    splits = make_splits(DataConfig(**fields), require_hard_answers=False)
    assert splits.samples["hard_train"][0].answer is None
    del fields["test"]
    with pytest.raises(DataError, match="no column 'answer'"):
        make_splits(DataConfig(**fields), require_hard_answers=False)


def test_an_empty_split_is_an_error_with_the_sizes(write_jsonl: WriteLines) -> None:
    with pytest.raises(
        DataError, match=r"the split easy_val is empty \(easy_train 2, easy_val 0, .*fractions"
    ):
        make_splits(pool_config(write_jsonl(rows(4)), test_fraction=0.5))
    hard = rows(3, "h")
    fields = given_config(write_jsonl, easy=rows(10, "e"), hard=hard, test=hard + rows(2, "t"))
    with pytest.raises(DataError, match=r"the split hard_train is empty .*stand in other splits too"):
        make_splits(DataConfig(**fields, duplicates="drop"))


def test_choices_and_free_answers_do_not_mix(write_jsonl: WriteLines) -> None:
    choice = [{"question": "q?", "choices": ["x", "y"], "answer": 0}]
    fields = given_config(write_jsonl, easy=rows(10, "e"), hard=rows(10, "h"), test=choice)
    with pytest.raises(DataError, match=r"data\.test has choices and data\.easy has none"):
        make_splits(DataConfig(**fields))


def test_the_same_sample_in_two_splits(write_jsonl: WriteLines) -> None:
    easy, hard = rows(20, "e"), rows(10, "h")
    for row in easy[:10]:
        row["question"] = row["question"].replace("e", "h").upper()
    with pytest.raises(DataError, match=r"^10 sample\(s\) stand twice .*data.duplicates=drop$"):
        make_splits(DataConfig(**given_config(write_jsonl, easy=easy, hard=hard)))
    splits = make_splits(DataConfig(**given_config(write_jsonl, easy=easy, hard=hard), duplicates="drop"))
    assert sum(splits.report.duplicates_dropped.values()) == 10
    assert sum(len(part) for part in splits.samples.values()) == 20
    assert len(splits.samples["test"]) == 3


def test_equal_rows_without_ids_are_dropped_from_a_pool(write_jsonl: WriteLines) -> None:
    pool = [{"question": f"q{i % 30}", "answer": "a"} for i in range(40)]
    splits = make_splits(pool_config(write_jsonl(pool), duplicates="drop"))
    assert sum(len(part) for part in splits.samples.values()) == 30


def test_the_same_configuration_gives_the_same_splits(write_jsonl: WriteLines) -> None:
    path = write_jsonl(rows(30))
    first = make_splits(pool_config(path, seed=1))
    path.write_text("\n".join(json.dumps(row) for row in rows(30)[::-1]))
    second = make_splits(pool_config(path, seed=1))
    assert {n: set(p) for n, p in ids(first).items()} == {n: set(p) for n, p in ids(second).items()}
    assert ids(make_splits(pool_config(path, seed=2))) != ids(second)
