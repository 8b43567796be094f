"""The decode benchmark: both sides decide the same tokens, through real actors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from benchmarks import decode, voters
from ensemw2s.config import ModelConfig


def test_covered_time_counts_once() -> None:
    assert voters.covered([(3.0, 4.0), (0.0, 2.0), (1.0, 2.5), (1.2, 1.4)]) == pytest.approx(3.5)
    assert voters.covered([]) == 0.0


def test_members_lack_different_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.decode.inspect_model", lambda model: SimpleNamespace(n_layers=30))
    base = ModelConfig(path="x")
    blocks = [m.drop_layers for m in decode.member_configs(base, 8, 4)]
    assert blocks == ["2-23", "3-24", "4-25", "5-26"]
    assert [m.drop_layers for m in decode.member_configs(base, None, 2)] == ["13-13", "14-14"]


@pytest.mark.slow
def test_both_sides_say_the_same_tokens(ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert decode.main(["--quick", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.endswith("| 100.00% |") for line in lines if "| ours |" in line or "| gather |" in line] == [
        True,
        True,
    ]
