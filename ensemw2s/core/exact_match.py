"""When two free answers say the same."""

from __future__ import annotations

import re
import unicodedata


def normalize_answer(text: str) -> str:
    """A text for exact match: NFKC, case folded, white space collapsed, full stops at its end dropped where anything else is left."""
    folded = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip().casefold()
    return folded.rstrip(".").rstrip() or folded
