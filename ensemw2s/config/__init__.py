"""The experiment configuration: one typed, frozen tree, from YAML plus ``key=value`` overrides."""

from __future__ import annotations

from ensemw2s.config.base import Section
from ensemw2s.config.data import (
    SPLIT_NAMES,
    BuiltinSource,
    ColumnsConfig,
    DataConfig,
    FileSource,
    HubSource,
    ReasoningGymSource,
    Source,
    SplitConfig,
)
from ensemw2s.config.experiment import (
    BoostingConfig,
    EvaluationConfig,
    ExperimentConfig,
    RuntimeConfig,
    StrongConfig,
    VoteConfig,
    WeakConfig,
)
from ensemw2s.config.identity import completed_identity, identity_differences
from ensemw2s.config.models import LoraConfig, ModelConfig, StrongTrainingConfig, TrainingConfig, parse_layers
from ensemw2s.config.preference import PreferenceConfig

__all__ = [
    "SPLIT_NAMES",
    "BoostingConfig",
    "BuiltinSource",
    "ColumnsConfig",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FileSource",
    "HubSource",
    "LoraConfig",
    "ModelConfig",
    "PreferenceConfig",
    "ReasoningGymSource",
    "RuntimeConfig",
    "Section",
    "Source",
    "SplitConfig",
    "StrongConfig",
    "StrongTrainingConfig",
    "TrainingConfig",
    "VoteConfig",
    "WeakConfig",
    "completed_identity",
    "identity_differences",
    "parse_layers",
]
