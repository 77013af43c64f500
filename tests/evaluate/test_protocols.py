"""Logistic transfer, retrieval, one-class scores and episodes against scikit-learn."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from stablerep.config import UserError
from stablerep.evaluate import anomaly, few_shot, logistic, retrieval
from stablerep.evaluate.folds import draw_folds
from tests.evaluate.conftest import Problem

NAMES = tuple("abcdefghij")


def test_the_path_of_c_is_scikit_learn_at_each(problem: Problem) -> None:
    x, y = problem.train_x[:300, ::4], problem.train_y[:300]
    x = torch.from_numpy(StandardScaler().fit_transform(x)).float()
    cs = [1e-4, 1e-2, 1.0]
    for c, (weight, bias) in zip(cs, logistic.logistic_path(x, y, 10, cs), strict=True):
        oracle = LogisticRegression(C=c, max_iter=5000, tol=1e-6).fit(x, y)
        ours = (x @ weight + bias).softmax(1)
        np.testing.assert_allclose(ours, oracle.predict_proba(x), atol=0.01)


def test_logistic_transfer_chooses_c_on_a_fold(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "CS", (1e-6, 1e-2, 1e-1, 1e3))
    fold = draw_folds(problem.train_y.numpy(), 0, torch.device("cpu"))[0]
    numbers, answer = logistic.transfer(*astuple(problem), 10, fold)
    scale = StandardScaler().fit(problem.train_x)
    oracle = LogisticRegression(C=numbers["logistic_c"], max_iter=5000).fit(
        scale.transform(problem.train_x), problem.train_y
    )
    assert numbers["logistic_c"] in (1e-2, 1e-1)
    theirs = oracle.predict(scale.transform(problem.test_x))
    assert numbers["logistic_top1"] == pytest.approx(100 * (theirs == problem.test_y.numpy()).mean(), abs=0.3)
    assert (answer.named.numpy() == theirs).mean() > 0.99


def test_average_precision_is_that_of_scikit_learn(problem: Problem) -> None:
    p = problem
    found = retrieval.average_precisions(p.train_x, p.train_y, p.test_x[:50], p.test_y[:50])
    unit = torch.nn.functional.normalize
    cosine = (unit(p.test_x[:50]) @ unit(p.train_x).T).numpy()
    for row in range(50):
        oracle = average_precision_score(p.train_y.numpy() == p.test_y[row].item(), cosine[row])
        assert found[row].item() == pytest.approx(oracle, abs=1e-4)
    numbers = retrieval.retrieve(*astuple(problem), seed=0)
    assert 30 < numbers["retrieval_map"] < 80 and 0.3 < numbers["retrieval_map_ci95"] < 3


def test_anomaly_scores_rank_as_scikit_learn_says(problem: Problem) -> None:
    p = problem
    names = ("good", *NAMES[1:])
    found = anomaly.score_anomalies(p.train_x, p.train_y, p.test_x, p.test_y, names)
    scores = anomaly.anomaly_scores(p.train_x[p.train_y == 0], p.test_x).numpy()
    other = (p.test_y != 0).numpy()
    assert found["anomaly_auroc"] == pytest.approx(100 * roc_auc_score(other, scores))
    for kind, name in enumerate(names[1:], start=1):
        pair = (p.test_y == 0) | (p.test_y == kind)
        oracle = 100 * roc_auc_score(p.test_y[pair] == kind, scores[pair.numpy()])
        assert found["anomaly_per_class"][name] == pytest.approx(oracle)
    assert found["anomaly_auroc"] > 85
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(400):
        good, bad = scores[~other], scores[other]
        drawn.append(anomaly.auroc(random.choice(good, len(good)), random.choice(bad, len(bad)))[0])
    half = np.subtract(*np.percentile(drawn, (97.5, 2.5))) / 2
    assert found["anomaly_auroc_ci95"] == pytest.approx(half, rel=0.3)
    with pytest.raises(UserError, match="needs a class 'good'"):
        anomaly.score_anomalies(p.train_x, p.train_y, p.test_x, p.test_y, NAMES)


def test_ties_count_half() -> None:
    values, others = np.array([0.0, 1, 1, 2]), np.array([1.0, 1, 3])
    truth = np.array([0] * 4 + [1] * 3)
    assert anomaly.auroc(values, others)[0] == pytest.approx(100 * roc_auc_score(truth, [*values, *others]))


def test_episodes_are_the_logistic_regression_of_scikit_learn(problem: Problem) -> None:
    x = torch.nn.functional.normalize(problem.train_x - problem.train_x.mean(0))
    rows = torch.cat([torch.nonzero(problem.train_y == label)[:5, 0] for label in range(5)])
    (weight,) = few_shot.solve_episodes(x[rows][None].double(), 5, 5)
    oracle = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-8, max_iter=5000)
    oracle.fit(x[rows], np.repeat(np.arange(5), 5))
    np.testing.assert_allclose(weight.T, oracle.coef_, atol=1e-3)


def test_episodes_over_few_classes(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_shot, "EPISODES", 100)
    easy = few_shot.episodes(*astuple(problem), NAMES, 2, 5, seed=0)
    hard = few_shot.episodes(*astuple(problem), NAMES, 10, 1, seed=0)
    assert easy[0] > 85 and 40 < hard[0] < 70 and 0 < hard[1] < 3
    with pytest.raises(UserError, match="at most 10 ways"):
        few_shot.episodes(*astuple(problem), NAMES, 11, 1, seed=0)
    with pytest.raises(UserError, match="fewer than 500 training photos"):
        few_shot.episodes(*astuple(problem), NAMES, 2, 500, seed=0)
