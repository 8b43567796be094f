"""Settings: configuration files, overrides, their problems, and the reference of every field.

``python -m ensemw2s.settings`` prints docs/configuration.md.
"""

from __future__ import annotations

from ensemw2s.settings.deepspeed_file import load_deepspeed
from ensemw2s.settings.help_text import FieldDoc, describe_fields, format_help, format_markdown
from ensemw2s.settings.load import config_from_mapping, dump_config, load_config
from ensemw2s.settings.paths import absolute_paths
from ensemw2s.settings.study_file import assignments, read_base, read_study, split_study

__all__ = [
    "FieldDoc",
    "absolute_paths",
    "assignments",
    "config_from_mapping",
    "describe_fields",
    "dump_config",
    "format_help",
    "format_markdown",
    "load_config",
    "load_deepspeed",
    "read_base",
    "read_study",
    "split_study",
]
