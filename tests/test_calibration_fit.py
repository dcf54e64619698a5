"""Score maps, thresholds with a promise, conformal sets: against scikit-learn, closed forms and repeated draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as their_log_loss
from sklearn.metrics import roc_auc_score

from radglint import calibration_fit as fit
from radglint.calibration_fit import ClassCases
from radglint.decisions import Abstention, decide
from radglint.errors import InputError
from radglint.score_maps import KnotMap, LogisticMap, probability

SHIPPED = LogisticMap(slope=6.0, bias=-2.5)


def draw(n: int, seed: int, *, gap: float = 0.25, prevalence: float = 0.3, per_patient: int = 1) -> ClassCases:
    """Normal scores around 0.2, higher by `gap` where present; as in float32 models."""
    rng = np.random.default_rng(seed)
    present = rng.random(n) < prevalence
    scores = (rng.normal(0.2, 0.15, n) + gap * present).astype(np.float32).astype(np.float64)
    return ClassCases(scores, present, np.array([f"p{k // per_patient}" for k in range(n)], dtype=object))


def soft_regression(values: np.ndarray, targets: np.ndarray, *, with_bias: bool) -> LogisticRegression:
    """Scikit-learn's optimum for targets between 0 and 1: every case twice, once as each label."""
    weights = np.concatenate([targets, 1 - targets])
    labels = np.repeat([1, 0], len(values))
    model = LogisticRegression(C=np.inf, fit_intercept=with_bias, tol=1e-10, max_iter=10_000)
    return model.fit(np.tile(values, 2)[:, None], labels, sample_weight=weights)


@pytest.mark.parametrize("seed", range(4))
def test_platt_is_the_logistic_regression_of_scikit_learn(seed: int) -> None:
    cases = draw(300, seed)
    theirs = soft_regression(cases.scores, fit.smoothed_targets(cases.present), with_bias=True)
    ours = fit.fit_platt(cases)
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert ours.bias == pytest.approx(theirs.intercept_[0], rel=1e-4)


def test_hard_targets_too() -> None:
    cases = draw(300, 9)
    slope, bias = fit.fit_logistic(cases.scores, cases.present.astype(float))
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(cases.scores[:, None], cases.present)
    assert (slope, bias) == pytest.approx((theirs.coef_[0, 0], theirs.intercept_[0]), rel=1e-4)


def test_at_the_optimum_the_mean_probability_is_the_mean_target() -> None:
    cases = draw(200, 1)
    line, targets = fit.fit_platt(cases), fit.smoothed_targets(cases.present)
    p = expit(line.logit(cases.scores))
    assert p.mean() == pytest.approx(targets.mean(), abs=1e-10)
    assert (p * cases.scores).mean() == pytest.approx((targets * cases.scores).mean(), abs=1e-10)


def test_two_scores_have_a_closed_form() -> None:
    cases = ClassCases.of([0.0] * 10 + [1.0] * 10, [True] * 2 + [False] * 8 + [True] * 7 + [False] * 3)
    slope, bias = fit.fit_logistic(cases.scores, cases.present.astype(float))
    assert bias == pytest.approx(math.log(2 / 8))
    assert slope == pytest.approx(math.log(7 / 3) - math.log(2 / 8))


def test_separable_scores_keep_a_finite_slope() -> None:
    cases = ClassCases.of([*np.linspace(0, 0.4, 20), *np.linspace(0.6, 1, 20)], [False] * 20 + [True] * 20)
    line = fit.fit_platt(cases)
    assert 0 < line.slope < 100
    assert expit(line.logit(1.0)) < 1


@pytest.mark.parametrize("seed", range(3))
def test_temperature_is_the_regression_without_a_bias(seed: int) -> None:
    cases = draw(300, seed)
    logits = SHIPPED.logit(cases.scores)
    theirs = soft_regression(logits, fit.smoothed_targets(cases.present), with_bias=False).coef_[0, 0]
    ours = fit.fit_temperature(cases, SHIPPED)
    assert ours.logit(cases.scores) == pytest.approx(theirs * logits, rel=1e-4)
    assert ours.logit(2.5 / 6) == pytest.approx(0, abs=1e-12)  # one half stays one half


def test_isotonic_rates_are_those_of_scikit_learn() -> None:
    for seed in range(5):
        cases = draw(150, seed)
        cases = ClassCases(cases.scores.round(2), cases.present, cases.patients)  # with ties
        scores, rates = fit.isotonic_rates(cases)
        theirs = IsotonicRegression(out_of_bounds="clip").fit(cases.scores, cases.present)
        assert rates == pytest.approx(theirs.predict(scores), abs=1e-12)


def test_the_isotonic_map_is_the_plain_one_but_for_the_tilt_and_the_held_ends() -> None:
    cases = draw(400, 2)
    plain = IsotonicRegression(out_of_bounds="clip").fit(cases.scores, cases.present).predict(cases.scores)
    ours = expit(fit.fit_isotonic(cases).logit(cases.scores))
    assert np.abs(ours - plain).max() < 0.02


@given(st.integers(0, 10_000), st.sampled_from(["platt", "temperature", "isotonic"]), st.floats(0.02, 0.5))
def test_auroc_is_untouched_by_every_map(seed: int, method: str, gap: float) -> None:
    """As many distinct probabilities as scores, in their order: equal AUROC, bit by bit."""
    cases = draw(150, seed, gap=gap)
    try:
        to_logit = fit.fit_map(method, cases, SHIPPED)
    except InputError:
        assert fit.fit_platt(cases).slope <= 0 or method == "temperature"
        return
    p = np.array([probability(score, to_logit) for score in cases.scores])
    order = np.argsort(cases.scores, kind="stable")
    rises = np.diff(cases.scores[order]) > 0
    assert ((np.diff(p[order]) > 0) == rises).all()
    assert roc_auc_score(cases.present, p) == roc_auc_score(cases.present, cases.scores)


def test_new_scores_keep_their_order_too() -> None:
    to_logit = fit.fit_isotonic(draw(200, 3))
    scores = np.linspace(-1, 1, 20_001)
    assert (np.diff(to_logit.logit(scores)) > 0).all()


def test_no_patient_is_fitted_and_judged_on() -> None:
    cases = draw(200, 4, per_patient=3)
    judged = np.zeros(200, int)
    for fitted, held in fit.folds(cases):
        assert not set(cases.patients[fitted]) & set(cases.patients[held])
        assert (fitted ^ held).all()
        assert cases.present[held].any()
        judged += held
    assert (judged == 1).all()


def test_held_out_loss_is_that_of_maps_fitted_on_the_other_folds() -> None:
    cases = draw(200, 5)
    logits = fit.held_out_logits("platt", cases, SHIPPED)
    for fitted, held in fit.folds(cases):
        line = fit.fit_platt(cases.part(fitted))
        assert logits[held] == pytest.approx(line.logit(cases.scores[held]))
    line = fit.fit_platt(cases)
    wanted = their_log_loss(cases.present, expit(line.logit(cases.scores)))
    assert fit.log_loss(line, cases) == pytest.approx(wanted)


def test_isotonic_is_chosen_only_with_many_cases_and_where_it_is_better() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(3000)
    stairs = np.where(scores < 0.4, 0.05, np.where(scores < 0.8, 0.5, 0.55))
    bent = ClassCases.of(scores, rng.random(3000) < stairs)
    assert fit.choose_method(bent, SHIPPED) == "isotonic"
    assert fit.choose_method(bent.part(np.arange(150)), SHIPPED) == "platt"  # less than 100 of one label
    straight = ClassCases.of(scores, rng.random(3000) < expit(6 * scores - 3))
    assert fit.choose_method(straight, SHIPPED) == "platt"


def test_the_prior_shift_is_bayes_rule() -> None:
    """Two normal classes: the posterior at another prevalence, from densities, against the shifted logit."""

    def posterior(x: float, prevalence: float) -> float:
        one, other = (prevalence * math.exp(-((x - 1) ** 2) / 2), (1 - prevalence) * math.exp(-(x**2) / 2))
        return one / (one + other)

    for x in (-1.0, 0.3, 2.0):
        logit = math.log(posterior(x, 0.3) / (1 - posterior(x, 0.3)))
        assert expit(logit + fit.prior_shift(0.3, 0.02)) == pytest.approx(posterior(x, 0.02))


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (7, 10), (45, 50), (1, 1)])
def test_intervals_are_those_of_clopper_and_pearson(hits: int, count: int) -> None:
    theirs = binomtest(hits, count).proportion_ci(0.95, method="exact")
    ours = fit.exact_rate(hits, count)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_known_sample_sizes_of_tolerance_limits() -> None:
    """Wilks: 59 cases for 95 % at 95 % confidence, 29 for 90 %; and the next steps."""
    assert (fit.least_patients(0.95), fit.least_patients(0.9), fit.least_patients(0.5)) == (59, 29, 5)
    assert [fit.allowed_misses(n, 0.95) for n in (58, 59, 92, 93)] == [-1, 0, 0, 1]
    assert [fit.allowed_misses(n, 0.9) for n in (28, 29, 45, 46)] == [-1, 0, 0, 1]


@pytest.mark.parametrize("goal", ["sensitivity", "specificity"])
def test_a_promised_rate_holds_with_the_stated_confidence(goal: str) -> None:
    """Over 600 draws, the true rate at the chosen cut is at least the wanted one in 95 % of them."""
    rng = np.random.default_rng(1)
    kept = []
    for _ in range(600):
        scores = np.concatenate([rng.random(60), rng.random(60)])  # uniform: the true rates are known
        cases = ClassCases.of(scores, [True] * 60 + [False] * 60)
        cut = fit.cut_for(goal, 0.9, cases)
        kept.append((1 - cut if goal == "sensitivity" else cut) >= 0.9)
    assert 0.93 < np.mean(kept) <= 1.0


def test_a_patient_counts_once_with_any_of_its_images() -> None:
    scores, present = np.arange(3000.0), np.arange(3000) % 3 > 0
    cases = ClassCases(scores, present, np.array([f"p{k // 3}" for k in range(3000)], dtype=object))
    assert (cases.one_present // 3).tolist() == list(range(1000))
    assert (cases.one_present % 3 == 1).mean() == pytest.approx(0.5, abs=0.05)
    assert (cases.one_absent == np.arange(0, 3000, 3)).all()
    mixed = cases.part(np.random.default_rng(1).permutation(3000))
    assert (mixed.one_present == cases.one_present).all()


def test_coverage_holds_for_a_new_patient_where_patients_have_many_alike_images() -> None:
    """Six images of each of 30 patients, which differ much more between than within patients."""
    rng, covered = np.random.default_rng(3), []
    for _ in range(400):
        scores = np.repeat(rng.normal(0, 1, 60), 6) + rng.normal(0, 0.1, 360)
        patients = [f"p{k // 6}" for k in range(360)]
        low, _ = fit.conformal_cuts(0.1, ClassCases.of(scores, [True] * 180 + [False] * 180, patients))
        covered.append((rng.normal(0, 1, 300) + rng.normal(0, 0.1, 300) >= low).mean())
    assert 0.895 <= np.mean(covered) <= 0.94


@pytest.mark.parametrize(("goal", "kind"), [("sensitivity", "with"), ("specificity", "without")])
def test_too_few_patients_promise_nothing(goal: str, kind: str) -> None:
    cases = ClassCases.of(np.linspace(0, 1, 80), [False] * 40 + [True] * 40, [str(k // 2) for k in range(80)])
    with pytest.raises(InputError, match=rf"{goal} 0.9 cannot be promised: 29 patients {kind} the finding .* are 20"):
        fit.cut_for(goal, 0.9, cases)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.25])
def test_conformal_sets_cover_as_promised(alpha: float) -> None:
    """Mean coverage of each class over 400 draws of 50 and 70 cases: at least 1 - alpha, and not much more."""
    rng = np.random.default_rng(2)
    covered = np.zeros(2)
    for _ in range(400):
        scores = np.concatenate([rng.normal(1, 1, 50), rng.normal(0, 1, 70)])
        low, high = fit.conformal_cuts(alpha, ClassCases.of(scores, [True] * 50 + [False] * 70))
        covered += [(rng.normal(1, 1, 500) >= low).mean() / 400, (rng.normal(0, 1, 500) <= high).mean() / 400]
    assert (covered >= 1 - alpha - 0.006).all()
    assert (covered <= 1 - alpha + 0.04).all()


def test_decisions_of_conformal_sets_are_wrong_at_most_as_often_as_promised() -> None:
    """Through probabilities, as `ask` does it: the share of the present that is called absent, and the reverse."""
    wrong = np.zeros(2)
    for seed in range(150):
        cases, new = draw(120, seed, gap=0.2, prevalence=0.5), draw(400, 1000 + seed, gap=0.2, prevalence=0.5)
        line = fit.fit_platt(cases)
        low, high = (probability(cut, line) for cut in fit.conformal_cuts(0.1, cases))
        sets = Abstention(alpha=0.1, present_from=low, absent_to=high, num_present=60, num_absent=60)
        said = np.array([decide(probability(score, line), sets.nearest(0.5), sets) for score in new.scores])
        wrong += [(said[new.present] == "absent").mean() / 150, (said[~new.present] == "present").mean() / 150]
        assert (said == "uncertain").any()
    assert (wrong <= 0.105).all()


def test_too_few_patients_for_alpha() -> None:
    cases = ClassCases.of(np.linspace(0, 1, 26), [False] * 18 + [True] * 8)
    with pytest.raises(InputError, match=r"alpha 0.1 needs 9 patients with .* there are 8 and 18"):
        fit.conformal_cuts(0.1, cases)
    fit.conformal_cuts(0.12, cases)


def test_a_cut_lies_between_cases_so_that_rounding_moves_none() -> None:
    scores = np.array([0.1, 0.2, 0.4])
    assert fit.between(scores, 0.4, below=True) == pytest.approx(0.3)
    assert fit.between(scores, 0.2, below=False) == pytest.approx(0.3)
    assert fit.between(scores, 0.1, below=True) == pytest.approx(-0.05)
    assert fit.between(scores, 0.4, below=False) == pytest.approx(0.55)


def test_scores_that_fall_or_do_not_move_are_refused() -> None:
    falling = ClassCases.of(np.linspace(0, 1, 40), [True] * 20 + [False] * 20)
    for method in ("platt", "isotonic"):
        with pytest.raises(InputError, match="do not rise"):
            fit.fit_map(method, falling, SHIPPED)
    with pytest.raises(InputError, match="all scores are the same"):
        fit.fit_platt(ClassCases.of([0.5] * 10, [True] * 5 + [False] * 5))


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (([0.1, 0.2], [True], ["a", "b"]), "one length"),
        (([0.1, math.nan], [True, False], ["a", "b"]), "not finite"),
    ],
)
def test_broken_cases_are_refused(parts: tuple, words: str) -> None:
    with pytest.raises(InputError, match=words):
        ClassCases.of(*parts)


def test_labels_must_be_bool() -> None:
    with pytest.raises(InputError, match="uncertain"):
        ClassCases(np.zeros(2), np.array([0.0, 0.5]), np.array(["a", "b"], dtype=object))


def test_a_map_through_knots_is_refused_unless_it_rises() -> None:
    for scores, logits in (((0.0, 0.0), (0.0, 1.0)), ((0.0, 1.0), (1.0, 1.0)), ((0.0,), (0.0, 1.0))):
        with pytest.raises(ValueError, match=r"rise strictly|one logit per score"):
            KnotMap(scores=scores, logits=logits, outer_slope=1)


def test_a_changed_map_has_scaled_and_shifted_logits() -> None:
    knots = KnotMap(scores=(0.0, 0.5, 1.0), logits=(-1.0, 0.0, 3.0), outer_slope=0.5)
    x = np.linspace(-1, 2, 31)
    for to_logit in (knots, SHIPPED):
        changed = to_logit.changed(factor=2.0, shift=-0.7)
        assert changed.logit(x) == pytest.approx(2.0 * to_logit.logit(x) - 0.7)
    assert knots.logit([-1.0, 0.25, 2.0]).tolist() == [-1.5, -0.5, 3.5]
