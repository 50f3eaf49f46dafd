"""From a fitted scikit-learn classifier to an answer over MQTT: `predict_proba`'s numbers for every row."""

import doctest
import functools
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# These matrices are small: threads wait for each other, 15 times longer where the machine is busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV, SGDClassifier
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("examples", "deploy/tests", "client/tests")]

import sklearn_to_model  # noqa: E402
from clients import probabilities, sha256, size  # noqa: E402
from local_cloud import local_cloud  # noqa: E402
from sklearn_to_model import TARGETS, example, model_file, write_model  # noqa: E402

MOST_BYTES = 100_000  # of a request: AWS IoT takes 128 KB
IRIS, BINARY, WINE = load_iris(), load_breast_cancer(), load_wine()
pytestmark = pytest.mark.filterwarnings("ignore:labels that are not text")


def logistic(**settings):
    return LogisticRegression(tol=1e-8, max_iter=10_000, **settings)


def penguins():
    """Pipeline, X, y and names of data/penguins.csv, without the rows that lack a value."""
    frame = pd.read_csv(ROOT / "data/penguins.csv")
    features = [name for name in frame if name.endswith(("_mm", "_g"))]
    frame = frame.dropna(subset=features)
    pipeline = make_pipeline(StandardScaler(), logistic()).fit(frame[features], frame["species"])
    return pipeline, frame[features], frame["species"], {"data": ROOT / "data/penguins.csv"}


SETS = [*TARGETS, "penguins"]


@functools.cache
def written(name):
    """Pipeline, X and y of a data set, and the bytes of its model file with the name that it got."""
    pipeline, X, y, names = penguins() if name == "penguins" else example(name)
    with tempfile.TemporaryDirectory() as folder:
        sha = write_model(Path(folder, "model.json"), pipeline, X, y, **names)
        return pipeline, X, y, Path(folder, "model.json").read_bytes(), sha


def difference(model, estimator, X):
    """The largest |Δp| between the model file and `predict_proba`, by arithmetic of our own."""
    rows = np.asarray(X).tolist()
    ours = [probabilities(model["weights"], model["intercepts"], row) for row in rows]
    return np.abs(np.array(ours) - estimator.predict_proba(X)).max()


# --- what is written --------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_the_file_gives_the_probabilities_of_predict_proba(name):
    pipeline, X, _, content, sha = written(name)
    model = json.loads(content)
    assert sha == sha256(content)
    assert difference(model, pipeline, X) <= 1e-9
    for golden in model["golden"]:
        (row,) = np.flatnonzero((np.asarray(X) == golden["features"]).all(axis=1))[:1]
        assert golden["probabilities"] == pytest.approx(pipeline.predict_proba(X)[row], rel=1e-12)


@pytest.mark.parametrize(
    "pipeline",
    [
        logistic(),
        make_pipeline(MinMaxScaler((-1, 3)), logistic(C=0.1)),
        make_pipeline(StandardScaler(with_mean=False), MinMaxScaler(), "passthrough", logistic(C=10)),
        make_pipeline(StandardScaler(with_std=False), logistic(class_weight="balanced")),
        make_pipeline(StandardScaler(), logistic(class_weight={0: 1, 1: 5, 2: 0.5}, solver="newton-cg")),
        make_pipeline(StandardScaler(), logistic(fit_intercept=False, solver="saga")),
        make_pipeline(StandardScaler(), logistic(C=1e4)),
    ],
    ids=str,
)
def test_scaling_is_folded_and_the_gradient_is_that_of_the_fit(pipeline):
    pipeline.fit(IRIS.data, IRIS.target)
    model = model_file(pipeline, IRIS.data, IRIS.target)
    assert difference(model, pipeline, IRIS.data) <= 1e-9
    classifier = pipeline[-1] if isinstance(pipeline, Pipeline) else pipeline
    assert model["training"]["alpha"] == 1 / classifier.C
    assert model["training"]["gradient_norm"] < 1e-2
    # Of labels that were not fitted it is of the size of the data.
    assert model_file(pipeline, IRIS.data, IRIS.target[::-1])["training"]["gradient_norm"] > 10


@pytest.mark.parametrize("solver", ["lbfgs", "liblinear", "newton-cholesky"])
def test_two_classes_of_which_the_first_has_zeros(solver):
    pipeline = make_pipeline(StandardScaler(), logistic(solver=solver)).fit(BINARY.data, BINARY.target)
    model = model_file(pipeline, BINARY.data, BINARY.target, classes=BINARY.target_names)
    assert (model["weights"][0], model["intercepts"][0]) == ([0.0] * 30, 0.0)
    assert difference(model, pipeline, BINARY.data) <= 1e-9
    assert model["training"]["gradient_norm"] < 1e-2


def test_the_training_numbers_are_those_of_the_fit():
    pipeline = make_pipeline(StandardScaler(), logistic(C=4)).fit(IRIS.data, IRIS.target)
    model = model_file(pipeline, IRIS.data, IRIS.target, data=b"the file's bytes")
    training, p = model["training"], pipeline.predict_proba(IRIS.data)
    assert training.pop("gradient_norm") < 1e-4
    assert training.pop("log_loss") == pytest.approx(log_loss(IRIS.target, p), abs=1e-12)
    folds = StratifiedKFold(5).split(IRIS.data, IRIS.target)
    right = [
        clone(pipeline).fit(IRIS.data[fit], IRIS.target[fit]).score(IRIS.data[test], IRIS.target[test])
        for fit, test in folds
    ]
    assert training.pop("cv_accuracy") == pytest.approx(np.mean(right))
    iterations = int(pipeline[-1].n_iter_.max())
    assert training == {
        "data_sha256": sha256(b"the file's bytes"), "rows": 150, "alpha": 0.25, "iterations": iterations,
    }  # fmt: skip


def test_golden_rows_are_one_typical_of_each_class_and_the_least_certain():
    pipeline, X, y, names = example("wine")
    p, golden = pipeline.predict_proba(X), model_file(pipeline, X, y, **names)["golden"]
    for k, row in enumerate(golden[:3]):
        assert np.median(p[y == k, k]) == pytest.approx(row["probabilities"][k], abs=1e-3)
        assert row["features"] in X[y == k].tolist()
    assert len(golden) == 4 and max(golden[3]["probabilities"]) == p.max(axis=1).min()


def test_names_units_and_bounds_have_defaults_and_can_be_said():
    pipeline, X, y, _ = penguins()
    model = model_file(pipeline, X, y, units={"body_mass_g": "g"}, accept={"body_mass_g": (0, 50_000)})
    assert model["target"] == "species" and model["classes"] == ["Adelie", "Chinstrap", "Gentoo"]
    length, mass = model["features"][0], model["features"][3]
    assert length == {"name": "bill_length_mm", "unit": "", "min": 32.1, "max": 59.6, "accept": [4.6, 87.1]}
    assert mass == {
        "name": "body_mass_g",
        "unit": "g",
        "min": 2700.0,
        "max": 6300.0,
        "accept": [0.0, 50_000.0],
    }
    bare = logistic().fit(np.array([[0.0, 7.0], [1.0, 7.0]] * 5), [0, 1] * 5)
    with pytest.warns(UserWarning, match="labels that are not text become text: 0, 1"):
        model = model_file(bare, np.array([[0.0, 7.0], [1.0, 7.0]] * 5), [0, 1] * 5)
    assert (model["target"], model["classes"]) == ("class", ["0", "1"])
    assert [feature["name"] for feature in model["features"]] == ["x0", "x1"]
    assert [feature["accept"] for feature in model["features"]] == [[-1.0, 2.0], [0.0, 14.0]]


# --- what is refused --------------------------------------------------------


X, Y = StandardScaler().fit_transform(WINE.data), WINE.target


def fitted(*steps, x=X, y=Y):
    return make_pipeline(*steps).fit(x, y)


def changed(estimator, **attributes):
    """As an older scikit-learn would have left it."""
    vars(estimator).update(attributes)
    return estimator


def older(**attributes):
    return changed(fitted(LogisticRegression())[-1], **attributes)


SCALED = fitted(StandardScaler(), LogisticRegression())
WIDE, MANY, FAR = np.vstack([np.eye(257)] * 5), list(range(257)) * 5, X + 1e10
MISSING, TEXT = X.copy(), X.astype(object)
MISSING[3, 2], TEXT[3, 2] = np.nan, "2 g"
NAMES = [f"n{column}" for column in range(13)]

WRONG = {
    "no classifier": (fitted(StandardScaler()), {}, "is a StandardScaler, expected a LogisticRegression"),
    "another classifier": (fitted(SGDClassifier(loss="log_loss")), {}, "is a SGDClassifier, expected"),
    "one against the rest": (fitted(OneVsRestClassifier(LogisticRegression())), {},
        "is a OneVsRestClassifier, expected"),
    "its own search": (changed(LogisticRegressionCV(), n_features_in_=13), {},
        "is a LogisticRegressionCV, expected"),
    "a search": (GridSearchCV(SCALED, {}).fit(X, Y), {}, "pass its `best_estimator_`"),
    "an unknown step": (fitted(PCA(5), LogisticRegression()), {}, "a PCA cannot be folded"),
    "a step that clips": (fitted(MinMaxScaler(clip=True), LogisticRegression()), {},
        "clip=True cannot be folded"),
    "not fitted": (make_pipeline(StandardScaler(), LogisticRegression()), {}, "not fitted: call `fit` first"),
    "L1": (fitted(LogisticRegression(l1_ratio=0.5, solver="saga")), {}, "L1 part"),
    "L1 as it used to be": (older(penalty="l1"), {}, "L1 part"),
    "ovr": (older(multi_class="ovr"), {}, 'multi_class="ovr", fits'),
    "liblinear": (older(solver="liblinear"), {}, "fits the classes one against the rest"),
    "not softmax": (older(predict_proba=lambda rows: np.full((len(rows), 3), 1 / 3)), {},
        "other probabilities than predict_proba"),
    "a tiny spread": (fitted(StandardScaler(), LogisticRegression(), x=FAR), {"X": FAR}, "is tiny beside its mean"),
    "other columns": (SCALED, {"X": X[:, :4]}, "X has 4 columns, the classifier was fitted on 13"),
    "other rows": (SCALED, {"y": Y[:-1]}, "X has 178 rows, y has 177"),
    "another class": (SCALED, {"y": Y + 1}, "differ in 0, 3: pass the data"),
    "one row": (SCALED, {"X": X[0]}, "not a table"),
    "NaN": (SCALED, {"X": MISSING}, "missing or infinite value in row 3, column 2"),
    "text": (SCALED, {"X": TEXT}, "X holds what is no number"),
    "few rows": (SCALED, {"X": X[::50], "y": Y[::50]}, "no class has 5 rows"),
    "257 features": (fitted(LogisticRegression(), x=WIDE, y=WIDE[:, 0]), {"X": WIDE, "y": WIDE[:, 0]},
        "257 features, a model"),
    "257 classes": (fitted(LogisticRegression(), x=WIDE[:, :9], y=MANY), {"X": WIDE[:, :9], "y": MANY},
        "257 classes, a model"),
    "a reserved name": (SCALED, {"features": ["model", *NAMES[1:]]}, "'model' is reserved"),
    "a reserved target": (SCALED, {"target": "error"}, "'error' is reserved"),
    "a name twice": (SCALED, {"features": ["n1", *NAMES[1:]]}, "'n1' appears twice"),
    "the target is a feature": (SCALED, {"features": NAMES, "target": "n7"}, "'n7' appears twice"),
    "a class twice": (SCALED, {"classes": ["a", "b", "a"]}, "'a' appears twice"),
    "an empty name": (SCALED, {"features": ["", *NAMES[1:]]}, "'' is no name"),
    "a long name": (SCALED, {"classes": ["é" * 33, "b", "c"]}, "is no name"),
    "too few names": (SCALED, {"features": NAMES[1:]},
        "12 names of features are given, the classifier has 13"),
    "too few classes": (SCALED, {"classes": ["a", "b"]},
        "2 names of classes are given, the classifier has 3"),
    "too few units": (SCALED, {"units": ["g", "mm"]}, "2 units are given"),
    "a unit of nothing": (SCALED, {"units": {"length": "mm"}}, "names 'length', the features are x0, x1"),
    "bounds of nothing": (SCALED, {"accept": {"length": (0, 1)}}, "names 'length', the features are x0, x1"),
    "bounds too narrow": (SCALED, {"accept": {"x0": (12, 20)}}, "'x0' is [12.0, 20.0], and must hold"),
    "endless bounds": (SCALED, {"accept": {"x0": (0, np.inf)}}, "'x0' is [0.0, inf], and must hold"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_written_gets_a_sentence(case, tmp_path):
    estimator, settings, words = WRONG[case]
    arguments = {"X": X, "y": Y, **settings}
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        write_model(tmp_path / "model.json", estimator, **arguments)
    assert "\n" not in str(refused.value) and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_a_file_that_would_be_too_large_is_not_written(tmp_path):
    many, labels = np.random.default_rng(14).normal(size=(500, 250)), np.repeat(np.arange(100), 5)
    estimator = changed(
        LogisticRegression(max_iter=1), classes_=np.arange(100), n_features_in_=250, n_iter_=np.array([1])
    )
    estimator.coef_, estimator.intercept_ = np.full((100, 250), 1 / 3e7), np.zeros(100)
    with pytest.raises(ValueError, match="more than 1048576: use fewer features"):
        write_model(tmp_path / "model.json", estimator, many, labels)
    assert not list(tmp_path.iterdir())


# --- the program and the files that it wrote --------------------------------


def test_the_docstring_shows_what_happens():
    failed, tried = doctest.testmod(sklearn_to_model)
    assert (failed, tried) == (0, 8)


def close(a, b):
    """Equal up to 1e-9: another machine's arithmetic may differ in the last digits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(close, a, b))
    return a == b or (isinstance(a, float) and a == pytest.approx(b, abs=1e-9))


def test_the_committed_file_is_what_the_program_writes(tmp_path):
    program = [sys.executable, ROOT / "examples/sklearn_to_model.py", "wine", tmp_path / "wine.json"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == sha256((tmp_path / "wine.json").read_bytes())
    ours, theirs = (
        json.loads((folder / "wine.json").read_text()) for folder in (ROOT / "examples", tmp_path)
    )
    # How a solver gets to the optimum, and how near, is the machine's own business.
    for training in (ours["training"], theirs["training"]):
        assert training.pop("gradient_norm") < 1e-4 and training.pop("iterations") > 1
    assert close(ours, theirs)


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path):
    program = [sys.executable, ROOT / "examples/sklearn_to_model.py", "wine", tmp_path / "no" / "wine.json"]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("sklearn_to_model.py: ") and done.stderr.count("\n") == 1


# --- the whole way ----------------------------------------------------------


@pytest.fixture(scope="module")
def cloud():
    """A local cloud with a deployed function and a device; its first model is of fruit."""
    with local_cloud((ROOT / "iris_fn/fuzz/corpus/model/fruit.json").read_bytes()) as cloud:
        cloud.must("deploy")
        cloud.devices = cloud.dir.with_name("devices")
        cloud.must("device", NAME="field")
        yield cloud


def chosen(name, X):
    """All rows; of the largest set a seeded tenth, at the small size."""
    rows = np.arange(len(X))
    return (
        np.sort(np.random.default_rng(14).permutation(rows)[: size(180, len(X))]) if len(X) > 1000 else rows
    )


def requests(model, rows):
    """Rows as batches that fit into a message."""
    names = [feature["name"] for feature in model["features"]]
    instances = [dict(zip(names, row)) for row in rows]
    most = max(1, MOST_BYTES // max(len(json.dumps(instance)) for instance in instances))
    return [{"instances": instances[first : first + most]} for first in range(0, len(instances), most)]


def by_model(device, sha, requests):
    """Their answers by this model: a container looks for a newer one every 5 s, and until then has the one before,
    which may refuse these features."""
    device.listening()
    answers, numbers, deadline = {}, itertools.count(), time.monotonic() + 60
    while left := [n for n in range(len(requests)) if n not in answers]:
        assert time.monotonic() < deadline, f"{len(left)} of {len(requests)} have no answer by {sha:.12}"
        asked = {f"{n}-{next(numbers)}": n for n in left}
        given = device.ask([{"request_id": request_id, **requests[n]} for request_id, n in asked.items()])
        answers |= {
            n: given[request_id] for request_id, n in asked.items() if given[request_id].get("model") == sha
        }
    return [answers[n] for n in range(len(requests))]


@pytest.mark.parametrize("name", SETS)
def test_a_published_model_answers_as_scikit_learn_does_for_every_row(name, cloud):
    pipeline, X, _, content, sha = written(name)
    rows = chosen(name, X)
    X, expected = np.asarray(X), pipeline.predict_proba(X)[rows]
    model, deployed = json.loads(content), cloud.alias()
    cloud.publish(content)
    batches = requests(model, X[rows].tolist())
    with cloud.device("field") as device:
        described = by_model(device, sha, [{"describe": True}])[0]
        answers = by_model(device, sha, batches)
    for key in ("target", "features", "classes"):
        assert described[key] == model[key]
    predictions = [prediction for answer in answers for prediction in answer["predictions"]]
    found = np.array([[each["probabilities"][label] for label in model["classes"]] for each in predictions])
    assert found.shape == expected.shape == (len(rows), len(model["classes"]))
    assert np.abs(found - expected).max() <= 1e-9
    assert [each[model["target"]] for each in predictions] == [
        model["classes"][k] for k in expected.argmax(axis=1)
    ]
    assert all(each["in_distribution"] for each in predictions)
    assert cloud.alias() == deployed, "no new version was needed"
