"""How hard a question is: out-of-fold confidence, disagreement, item response theory; larger is harder."""

from __future__ import annotations

from ensemw2s.core.difficulty.bins import difficulty_bins
from ensemw2s.core.difficulty.folds import FoldScores, assign_folds, check_out_of_fold, out_of_fold_rating
from ensemw2s.core.difficulty.irt import IrtFit, IrtParameters, IrtPriors, IrtProblem, fit_irt
from ensemw2s.core.difficulty.members import disagreement_rating
from ensemw2s.core.difficulty.split import easy_hard_split

__all__ = [
    "FoldScores",
    "IrtFit",
    "IrtParameters",
    "IrtPriors",
    "IrtProblem",
    "assign_folds",
    "check_out_of_fold",
    "difficulty_bins",
    "disagreement_rating",
    "easy_hard_split",
    "fit_irt",
    "out_of_fold_rating",
]
