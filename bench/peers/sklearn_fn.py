"""What most Python teams deploy: the fitted scikit-learn model, unpickled once per container."""

import time
from pathlib import Path

import joblib
import numpy as np

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
MODEL = joblib.load(Path(__file__).with_name("iris.joblib"))
CLASSES = MODEL.classes_.tolist()


def handler(event, context):
    started = time.perf_counter_ns()
    flowers = event.get("flowers", [event])
    x = np.array([[flower[name] for name in FEATURES] for flower in flowers], dtype=float)
    predictions = [
        {"species": CLASSES[p.index(max(p))], "probabilities": dict(zip(CLASSES, p))}
        for p in MODEL.predict_proba(x).tolist()
    ]
    answer = {"predictions": predictions} if "flowers" in event else predictions[0]
    answer["request_id"] = event["request_id"]
    answer["handler_us"] = (time.perf_counter_ns() - started) / 1e3
    return answer
