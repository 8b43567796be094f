"""Loading a model without the library's progress bars and reports on the terminal."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet(enabled: bool) -> Iterator[None]:
    """Silence transformers inside the block; what was set before is set again after it.

    Args:
        enabled: False changes nothing: a download from the hub keeps its progress bar.
    """
    if not enabled:
        yield
        return
    # The bar of GGUF conversion heeds no switch; errors are exceptions, so nothing that matters is lost here.
    with contextlib.redirect_stderr(io.StringIO()), without_reports():
        yield


@contextmanager
def without_reports() -> Iterator[None]:
    """Only errors of transformers, and none of its bars, inside the block; what others write there comes through.

    Its warnings of names that it will drop are left out, too: peft and TRL still use them, and users can do nothing about it.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
