"""When two free answers say the same."""

from __future__ import annotations

import pytest

from ensemw2s.core.exact_match import normalize_answer


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        # Letters of another width and case, and a full stop.
        ("\uff30\uff21\uff32\uff29\uff33.", "paris"),
        ("  New \n York..", "new york"),
        ("Pa ris", "pa ris"),
        ("yes .", "yes"),
        # Full stops alone are the answer; another one than none at all.
        ("...", "..."),
        ("", ""),
        ("3.5", "3.5"),
    ],
)
def test_by_hand(text, normalized):
    assert normalize_answer(text) == normalized
