"""Item response theory: gradients, optimality, recovery of simulated parameters, and its limits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from ensemw2s.core.difficulty import IrtParameters, IrtPriors, IrtProblem, fit_irt


def simulate(ability, difficulty, slope, seed):
    rng = np.random.default_rng(seed)
    p = 1.0 / (1.0 + np.exp(-np.asarray(slope) * (np.asarray(ability)[:, None] - np.asarray(difficulty))))
    return (rng.random(p.shape) < p).astype(float)


def problem_of(responses, priors=None) -> IrtProblem:
    values = np.asarray(responses, dtype=float)
    asked = ~np.isnan(values)
    return IrtProblem(np.where(asked, values, 0.0), asked.astype(float), priors or IrtPriors())


def test_gradient_by_finite_differences():
    rng = np.random.default_rng(0)
    responses = simulate(rng.normal(size=4), rng.normal(size=6), np.ones(6), seed=1)
    responses[0, 2] = responses[3, 5] = np.nan
    problem = problem_of(responses, IrtPriors(0.8, 1.7, 0.4))
    at = IrtParameters(rng.normal(size=4), rng.normal(size=6), rng.normal(0, 0.3, 6))
    gradient = problem.gradient(at)
    for name in ("ability", "difficulty", "log_slope"):
        for j in range(getattr(at, name).size):
            step = np.zeros(getattr(at, name).size)
            step[j] = 1e-5
            up = problem.log_posterior(replace(at, **{name: getattr(at, name) + step}))
            down = problem.log_posterior(replace(at, **{name: getattr(at, name) - step}))
            assert getattr(gradient, name)[j] == pytest.approx((up - down) / 2e-5, abs=1e-6)


def test_the_parts_add_up():
    problem = problem_of(simulate([0.0, 1.0], [0.5, -0.5, 0.0], np.ones(3), seed=2))
    at = IrtParameters(np.array([0.2, -0.3]), np.array([0.5, 0.1, -1.0]), np.array([0.1, 0.0, -0.2]))
    of_abilities = -0.5 * np.square(at.ability).sum()
    of_questions = -0.5 * (np.square(at.difficulty / 2.0).sum() + np.square(at.log_slope / 0.5).sum())
    whole = problem.log_posterior(at)
    assert problem.by_model(at).sum() == pytest.approx(whole - of_questions)
    assert problem.by_question(at).sum() == pytest.approx(whole - of_abilities)


def test_one_answer_by_hand():
    # One model, one question, right: with both standard deviations 1, ability = -difficulty = p(wrong) at the mode.
    fit = fit_irt([[1.0]], priors=IrtPriors(ability_sd=1.0, difficulty_sd=1.0))
    ability = fit.ability[0]
    assert fit.difficulty[0] == pytest.approx(-ability)
    assert ability == pytest.approx(1.0 / (1.0 + math.exp(2.0 * ability)), abs=1e-6)
    assert fit.converged


@pytest.mark.parametrize("model", ["rasch", "2pl"])
def test_the_fit_is_a_mode_and_the_posterior_never_falls(model):
    rng = np.random.default_rng(3)
    responses = simulate(rng.normal(size=12), rng.normal(size=30), np.exp(rng.normal(0, 0.3, 30)), seed=4)
    responses[rng.random(responses.shape) < 0.2] = np.nan
    fit = fit_irt(responses, model, min_models=5, tolerance=1e-12)
    assert fit.converged
    assert np.diff(fit.log_posteriors).min() >= -1e-9
    gradient = problem_of(responses).gradient(IrtParameters(fit.ability, fit.difficulty, np.log(fit.slope)))
    np.testing.assert_allclose(gradient.ability, 0.0, atol=1e-4)
    np.testing.assert_allclose(gradient.difficulty, 0.0, atol=1e-4)
    if model == "2pl":
        np.testing.assert_allclose(gradient.log_slope, 0.0, atol=1e-4)
    else:
        assert (fit.slope == 1.0).all()


def test_rasch_recovers_difficulties_and_abilities():
    rng = np.random.default_rng(5)
    ability, difficulty = rng.normal(size=60), rng.normal(0, 1.5, 200)
    fit = fit_irt(simulate(ability, difficulty, np.ones(200), seed=6))
    assert np.corrcoef(fit.difficulty, difficulty)[0, 1] > 0.95
    assert np.corrcoef(fit.ability, ability)[0, 1] > 0.95
    # Sixty answers a question tell its difficulty to about 0.35; location and scale come from the priors.
    error = (fit.difficulty - difficulty) - (fit.difficulty - difficulty).mean()
    assert np.sqrt(np.square(error).mean()) < 0.45


def test_2pl_recovers_slopes_and_fits_better_than_rasch():
    rng = np.random.default_rng(7)
    ability, difficulty, slope = rng.normal(size=300), rng.normal(size=40), np.exp(rng.normal(0, 0.5, 40))
    responses = simulate(ability, difficulty, slope, seed=8)
    fit = fit_irt(responses, "auto", tolerance=1e-3)
    assert fit.model == "2pl"
    assert np.corrcoef(np.log(fit.slope), np.log(slope))[0, 1] > 0.8
    assert np.corrcoef(fit.difficulty, difficulty)[0, 1] > 0.95
    assert fit.log_posteriors[-1] > fit_irt(responses).log_posteriors[-1] + 10.0


def test_questions_that_all_or_none_got_right_stay_finite_and_ordered():
    fit = fit_irt([[1, 1, 0], [1, 0, 0], [1, 1, 0]])
    assert np.isfinite(fit.difficulty).all()
    assert fit.difficulty[0] < fit.difficulty[1] < fit.difficulty[2]
    assert fit.ability[0] == pytest.approx(fit.ability[2])


def test_auto_takes_rasch_for_a_small_pool_and_2pl_refuses_it():
    responses = simulate(np.zeros(5), np.zeros(8), np.ones(8), seed=9)
    assert fit_irt(responses, "auto").model == "rasch"
    with pytest.raises(ValueError, match="at least min_models=30 models, got 5"):
        fit_irt(responses, "2pl")
    assert fit_irt(responses, "auto", min_models=5).model == "2pl"


def test_steps_are_few():
    """Newton's for rasch, those of scoring for 2pl: a step in another direction also climbs, more slowly."""
    responses = (np.random.default_rng(3).random((12, 30)) < 0.5).astype(float)
    assert len(fit_irt(responses, tolerance=1e-12).log_posteriors) <= 8
    assert len(fit_irt(responses, "2pl", min_models=12, tolerance=1e-12).log_posteriors) <= 60


@pytest.mark.parametrize(
    ("responses", "options", "message"),
    [
        ([[0.5, 1.0]], {}, "1 .right., 0 .wrong. or NaN"),
        ([1.0, 0.0], {}, r"\(models, questions\)"),
        ([[1.0, math.nan], [0.0, math.nan]], {}, "question 1 has none"),
        ([[1.0, 0.0], [math.nan, math.nan]], {}, "model 1 has none"),
        ([[1.0]], {"model": "3pl"}, "rasch, 2pl, auto"),
    ],
)
def test_refuses(responses, options, message):
    with pytest.raises(ValueError, match=message):
        fit_irt(responses, **options)


def test_refuses_a_prior_without_width():
    with pytest.raises(ValueError, match="difficulty_sd"):
        IrtPriors(difficulty_sd=0.0)
