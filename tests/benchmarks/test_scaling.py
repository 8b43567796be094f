"""The programs behind docs/scaling.md: their arithmetic, and what can be known of their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import label_memory, scaling
from benchmarks.material import tiny_model
from ensemw2s.config import ModelConfig
from ensemw2s.models.loading import load_tokenizer


def test_a_line_through_points_of_a_line() -> None:
    slope, base, explained = scaling.line([1, 2, 4], [5.0, 7.0, 11.0])
    assert (slope, base, explained) == pytest.approx((2.0, 3.0, 1.0))


def test_bytes_of_a_target_token_in_the_boosting_state() -> None:
    """A byte that says which weight, and int64 starts of samples of 16 tokens; a round has float32 weights, too, and its scores."""
    held, most = scaling.round_memory(80_000)
    assert held == pytest.approx(1 + 8 / 16, rel=0.1)
    assert most > held + 4 + 1


def test_long_answers_take_less_for_each_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelConfig(path=str(tiny_model(tmp_path / "model"))))
    short, long = (scaling.split_memory(tokenizer, n, 50) for n in (1, 256))
    assert short > 10 * long > 40.0


def test_the_plot(tmp_path: Path) -> None:
    x = {"rounds": [1, 2], "samples": [100, 200]}
    scaling.draw(tmp_path / "plot.png", x, {"rounds": [1.0, 2.0], "samples": [1.5, 2.5]})
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_the_files_that_are_labelled_have_their_size(tmp_path: Path) -> None:
    count = label_memory.write_file(tmp_path / "f.jsonl", 100_000)
    assert count == 5
    assert (tmp_path / "f.jsonl").stat().st_size == pytest.approx(100_000, rel=0.02)
