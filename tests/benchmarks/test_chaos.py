"""The program that kills processes by chance: whose turn it is, and its summary; the killing itself is done by hand."""

from __future__ import annotations

from benchmarks import chaos


def test_every_kind_of_process_has_its_turn() -> None:
    chosen = chaos.victims(14, 5)
    assert sorted(chosen[:6]) == sorted(chosen[6:12]) == sorted(chaos.VICTIMS)
    assert len(chosen) == 14


def test_the_summary_counts() -> None:
    trials = [
        chaos.Trial("driver", 1.0, starts=2, equal=True),
        chaos.Trial("driver", 1.0, starts=1, equal=False),
    ]
    assert chaos.summary(trials) == [["driver", "2", "1", "1", "1 of 2"]]
