"""Write the model file of a scikit-learn classifier, for the function to serve.

In your own program, after `fit`:

    from sklearn_to_model import write_model
    write_model("target/wine.json", pipeline, X, y, target="cultivar")

From the command line, one of scikit-learn's own data sets, scaled and fitted:

    python examples/sklearn_to_model.py wine examples/wine.json

The function knows no preprocessing, so scaling is folded into the weights: with x' = a·x + c, w·x' + b is
(w·a)·x + (w·c + b). What cannot be folded is refused with a `ValueError` that says what to do.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MinMaxScaler, StandardScaler
from sklearn.utils.class_weight import compute_sample_weight

# The limits of the function: iris_fn/src/model.rs.
MAX_FEATURES = MAX_CLASSES = 256
MAX_BYTES, MAX_NAME, TOLERANCE = 1 << 20, 64, 1e-9
RESERVED = set(
    "request_id instances describe warmup warm payload client_id mqtt_client_id probabilities predictions "
    "in_distribution model cold_start handler_us error".split()
)


def write_model(
    path: str | Path, estimator: BaseEstimator, X: ArrayLike, y: ArrayLike, **settings: Any
) -> str:
    """Write the model file of a fitted classifier; the parameters are those of :func:`model_file`.

    Returns
    -------
    sha256 : str
        The SHA-256 of the file, which is the model's name.
    """
    model = model_file(estimator, X, y, **settings)
    content = (json.dumps(model, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"the model file would have {len(content)} bytes, more than {MAX_BYTES}: use fewer features"
        )
    Path(path).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def model_file(
    estimator: BaseEstimator,
    X: ArrayLike,
    y: ArrayLike,
    *,
    target: str | None = None,
    features: Sequence[str] | None = None,
    units: Mapping[str, str] | Sequence[str] | str = "",
    classes: Sequence[str] | None = None,
    accept: Mapping[str, tuple[float, float]] | None = None,
    data: str | Path | bytes | None = None,
) -> dict[str, Any]:
    """The content of the model file of a fitted classifier.

    Parameters
    ----------
    estimator : LogisticRegression or Pipeline
        Fitted, without `sample_weight`. Steps before the classifier: `StandardScaler` and `MinMaxScaler`.
    X, y : array-like of shape (n_samples, n_features) and (n_samples,)
        What it was fitted on: the ranges, the golden rows and the training numbers come from here.
    target : str, default=name of `y`, or "class"
        What is predicted, such as "cultivar": the name of the label in an answer.
    features : sequence of str, default=the names it was fitted with, or "x0", "x1", …
        The fields of a request.
    units : mapping, sequence or str, default=""
        The features' units; a single one is that of all.
    classes : sequence of str, default=the labels as text
        The classes' names, in the order of `classes_` (scikit-learn's data sets call them `target_names`).
    accept : mapping of name to (low, high), optional
        The values that are answered at all. For other features it is the range of training, made wider by its
        own width on both sides (where that is a single value, by its size; where it is zero, by 1).
    data : path or bytes, optional
        The file that the data come from, for its SHA-256; by default `X` and `y` as CSV without a header.

    Returns
    -------
    model : dict
        Schema 2 of the model file. Its golden rows, with the probabilities of `predict_proba`: one typical
        row of each class, whose own probability is the median of that class, and the least certain of all.

    Examples
    --------
    >>> from sklearn.datasets import load_wine
    >>> from sklearn.pipeline import make_pipeline
    >>> wine = load_wine()
    >>> pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(wine.data, wine.target)
    >>> names = {"target": "cultivar", "features": wine.feature_names, "classes": wine.target_names}
    >>> model = model_file(pipeline, wine.data, wine.target, units={"alcohol": "%"}, **names)
    >>> model["features"][0]
    {'name': 'alcohol', 'unit': '%', 'min': 11.03, 'max': 14.83, 'accept': [7.23, 18.63]}
    >>> [np.shape(model[name]) for name in ("weights", "intercepts", "golden")]
    [(3, 13), (3,), (4,)]
    """
    (a, c, logistic), rows = _fold(estimator), _numbers(X)
    if rows.shape[1] != len(a):
        raise ValueError(f"X has {rows.shape[1]} columns, the classifier was fitted on {len(a)}")
    labels = logistic.classes_.tolist()
    codes = _codes(labels, np.ravel(np.asarray(y)).tolist(), len(rows))

    target = str(target or getattr(y, "name", None) or "class")
    features = _names(features, getattr(estimator, "feature_names_in_", None), X, len(a))
    if classes is None and not all(isinstance(label, str) for label in labels):
        warnings.warn(f"labels that are not text become text: {', '.join(map(str, labels))}", stacklevel=2)
    classes = [str(name) for name in (labels if classes is None else classes)]
    _check_names(target, features, classes, len(a), len(labels))

    weights, intercepts = logistic.coef_ * a, logistic.intercept_ + logistic.coef_ @ c
    if len(labels) == 2:  # P = 1 / (1 + exp(-z)) is the softmax of 0 and z
        weights, intercepts = np.vstack([np.zeros_like(weights), weights]), np.append(0.0, intercepts)
    probabilities = estimator.predict_proba(X)
    difference = np.abs(_softmax(rows @ weights.T + intercepts) - probabilities).max()
    if not difference <= TOLERANCE:
        raise ValueError(
            f"the weights give other probabilities than predict_proba, by up to {difference:.0e}: either "
            "the classes were not fitted together as a softmax (use lbfgs, leave multi_class out), or the spread "
            "of a feature is tiny beside its mean (subtract the mean in the data)"
        )

    typical = [_median(np.flatnonzero(codes == k), probabilities[:, k]) for k in range(len(labels))]
    golden = dict.fromkeys([*typical, int(probabilities.max(axis=1).argmin())])  # each row once
    true = np.maximum(probabilities[np.arange(len(rows)), codes], np.finfo(float).tiny)
    return {
        "schema": 2,
        "kind": "multinomial_logistic_regression",
        "target": target,
        "features": _ranges(rows, features, units, accept or {}),
        "classes": classes,
        "weights": weights.tolist(),
        "intercepts": intercepts.tolist(),
        "training": {
            "data_sha256": hashlib.sha256(_bytes(data, rows, labels, codes)).hexdigest(),
            "rows": len(rows),
            "alpha": 0.0 if logistic.penalty is None else float(1 / logistic.C),
            "iterations": int(np.max(logistic.n_iter_)),
            "gradient_norm": _gradient_norm(logistic, rows * a + c, codes, probabilities),
            "log_loss": float(-np.log(true).mean()),
            "cv_accuracy": float(cross_val_score(clone(estimator), X, y, cv=5, scoring="accuracy").mean()),
        },
        "golden": [
            {"features": rows[row].tolist(), "probabilities": probabilities[row].tolist()} for row in golden
        ],
    }


def _codes(labels: list, y: list, rows: int) -> NDArray[np.intp]:
    """`y` as positions in the classes that were fitted."""
    if len(y) != rows:
        raise ValueError(f"X has {rows} rows, y has {len(y)}")
    if differing := set(y) ^ set(labels):
        names = ", ".join(sorted(map(str, differing)))
        raise ValueError(
            f"y and the classes of the classifier differ in {names}: pass the data that it was fitted on"
        )
    codes = np.array([labels.index(label) for label in y])
    if np.bincount(codes).max() < 5:
        raise ValueError("no class has 5 rows, which 5-fold cross-validation needs: bring more data")
    return codes


def _numbers(X: ArrayLike) -> NDArray[np.float64]:
    """`X` as a matrix of finite numbers."""
    try:
        rows = np.asarray(X, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"X holds what is no number: encode it, or leave its column out ({error})") from None
    if rows.ndim != 2:
        raise ValueError("X is not a table of rows and columns (a sparse matrix: pass X.toarray())")
    if not np.isfinite(rows).all():
        row, column = np.argwhere(~np.isfinite(rows))[0]
        raise ValueError(
            f"X has a missing or infinite value in row {row}, column {column}: drop such rows before `fit`"
        )
    return rows


def _fold(estimator: BaseEstimator) -> tuple[NDArray, NDArray, LogisticRegression]:
    """What the scalers do, as x' = a·x + c, and the classifier behind them."""
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    *scalers, logistic = [step for step in steps if step not in (None, "passthrough")] or [None]
    wanted = "a LogisticRegression, or a Pipeline of StandardScaler or MinMaxScaler and it"
    # By their exact types: a subclass may compute something else.
    if type(logistic) is not LogisticRegression:
        best = ": pass its `best_estimator_`" if hasattr(logistic, "best_estimator_") else ""
        raise ValueError(f"the classifier is a {type(logistic).__name__}, expected {wanted}{best}")
    for step in scalers:
        if type(step) not in (StandardScaler, MinMaxScaler):
            raise ValueError(f"a {type(step).__name__} cannot be folded into weights, expected {wanted}")
        if getattr(step, "clip", False):
            raise ValueError(
                "a MinMaxScaler with clip=True cannot be folded into weights: fit one with clip=False"
            )
    if not all(hasattr(step, "n_features_in_") for step in (*scalers, logistic)):
        raise ValueError("the classifier, or a scaler before it, is not fitted: call `fit` first")
    if logistic.penalty == "l1" or (logistic.penalty != "l2" and logistic.l1_ratio):
        raise ValueError(
            "the penalty has an L1 part, and the file's `alpha` is an L2 penalty: fit with l1_ratio=0"
        )
    one_by_one = getattr(logistic, "multi_class", None) == "ovr" or logistic.solver == "liblinear"
    if one_by_one and len(logistic.classes_) > 2:
        raise ValueError('liblinear, or multi_class="ovr", fits the classes one against the rest: use lbfgs')

    a, c = np.ones(steps[0].n_features_in_), np.zeros(steps[0].n_features_in_)
    for step in scalers:
        if isinstance(step, MinMaxScaler):
            scale, shift = step.scale_, step.min_
        else:
            scale = 1 / step.scale_ if step.with_std else np.ones_like(a)
            shift = -step.mean_ * scale if step.with_mean else np.zeros_like(c)
        a, c = a * scale, c * scale + shift
    return a, c, logistic


def _names(given: Sequence[str] | None, fitted: ArrayLike | None, X: ArrayLike, count: int) -> list[str]:
    """The features' names: those that are given, else those of the columns."""
    for names in (given, fitted, getattr(X, "columns", None)):
        if names is not None:
            return list(map(str, names))
    return [f"x{column}" for column in range(count)]


def _check_names(target: str, features: list[str], classes: list[str], columns: int, labels: int) -> None:
    """Refuse what the function's loader would refuse."""
    for what, names, expected, least, most in (
        ("features", features, columns, 1, MAX_FEATURES),
        ("classes", classes, labels, 2, MAX_CLASSES),
    ):
        if len(names) != expected:
            raise ValueError(f"{len(names)} names of {what} are given, the classifier has {expected} {what}")
        if not least <= expected <= most:
            raise ValueError(f"the classifier has {expected} {what}, a model may have {least} to {most}")
    for names in ([target, *features], classes):
        for name in names:
            if not 0 < len(name.encode()) <= MAX_NAME or name != name.strip() or not name.isprintable():
                raise ValueError(
                    f"{name!r} is no name for a model: 1 to {MAX_NAME} bytes, no spaces around them"
                )
            if names.count(name) > 1:
                raise ValueError(
                    f"the name {name!r} appears twice: the target, each feature and each class need their own"
                )
            if name in RESERVED and names is not classes:
                raise ValueError(
                    f"the name {name!r} is reserved, requests or answers have such a field: pass another"
                )


def _ranges(
    rows: NDArray,
    names: list[str],
    units: Mapping[str, str] | Sequence[str] | str,
    accept: Mapping[str, tuple[float, float]],
) -> list[dict[str, Any]]:
    """What the file says of each feature."""
    for unknown in {*accept, *(units if isinstance(units, Mapping) else ())} - {*names}:
        raise ValueError(f"`units` or `accept` names {unknown!r}, the features are {', '.join(names)}")
    if isinstance(units, Mapping):
        units = [units.get(name, "") for name in names]
    units = [units] * len(names) if isinstance(units, str) else list(units)
    if len(units) != len(names):
        raise ValueError(f"{len(units)} units are given, the classifier has {len(names)} features")
    features = []
    for name, unit, low, high in zip(names, units, rows.min(axis=0).tolist(), rows.max(axis=0).tolist()):
        wider = high - low or abs(low) or 1.0
        # Twelve digits: 0.7 and not 0.6999999999999993.
        default = min(low, float(f"{low - wider:.12g}")), max(high, float(f"{high + wider:.12g}"))
        bounds = [float(bound) for bound in accept.get(name, default)]
        if not (np.isfinite(bounds).all() and bounds[0] <= low and high <= bounds[1]):
            raise ValueError(
                f"`accept` of {name!r} is {bounds}, and must hold what training saw, {low} to {high}"
            )
        features.append({"name": name, "unit": str(unit), "min": low, "max": high, "accept": bounds})
    return features


def _softmax(z: NDArray) -> NDArray:
    powers = np.exp(z - z.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def _median(rows: NDArray, values: NDArray) -> int:
    """Of these rows, the one in the middle by its value."""
    return int(rows[np.argsort(values[rows], kind="stable")[len(rows) // 2]])


def _gradient_norm(logistic: LogisticRegression, x: NDArray, codes: NDArray, probabilities: NDArray) -> float:
    """Of Σ −ln P(true class) + α/2 · Σ w², weighted by class, at the fit; `x` are the scaled rows."""
    residual = probabilities.copy()
    residual[np.arange(len(x)), codes] -= 1
    residual *= compute_sample_weight(logistic.class_weight, logistic.classes_[codes])[:, None]
    if len(logistic.classes_) == 2:
        residual = residual[:, 1:]
    alpha = 0.0 if logistic.penalty is None else 1 / logistic.C
    of_weights, of_intercepts = residual.T @ x + alpha * logistic.coef_, residual.sum(axis=0)
    if not logistic.fit_intercept:
        of_intercepts = 0.0 * of_intercepts
    elif logistic.solver == "liblinear":  # the one solver that penalises the intercept
        of_intercepts = of_intercepts + alpha * logistic.intercept_ / logistic.intercept_scaling**2
    return float(np.sqrt((of_weights**2).sum() + (of_intercepts**2).sum()))


def _bytes(data: str | Path | bytes | None, rows: NDArray, labels: list, codes: NDArray) -> bytes:
    """What `data_sha256` is of."""
    if data is not None:
        return data if isinstance(data, bytes) else Path(data).read_bytes()
    table = zip(rows.tolist(), codes)
    return "".join(f"{','.join(map(repr, row))},{labels[code]}\n" for row, code in table).encode()


TARGETS = {"iris": "species", "wine": "cultivar", "breast_cancer": "diagnosis", "digits": "digit"}


def example(name: str) -> tuple[Pipeline, NDArray, NDArray, dict[str, Any]]:
    """One of scikit-learn's own data sets: a fitted pipeline, `X`, `y`, and the names for the file."""
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")()
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(tol=1e-8, max_iter=10_000))
    names = {"target": TARGETS[name], "features": table.feature_names, "classes": table.target_names}
    return pipeline.fit(table.data, table.target), table.data, table.target, names


def main() -> None:
    """Write the model file of one of scikit-learn's own data sets."""
    import argparse

    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("dataset", choices=TARGETS)
    parser.add_argument("file", type=Path, help="the model file to write")
    options = parser.parse_args()
    *fitted, names = example(options.dataset)
    try:
        print(write_model(options.file, *fitted, **names))
    except (ValueError, OSError) as error:
        sys.exit(f"sklearn_to_model.py: {error}")


if __name__ == "__main__":
    main()
