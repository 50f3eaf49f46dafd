"""What most Python teams deploy: the fitted scikit-learn model, unpickled once per container."""

import json
import time
from pathlib import Path

import joblib
import numpy as np

NAMES = json.loads(Path(__file__).with_name("model.json").read_text())
FEATURES, TARGET = NAMES["features"], NAMES["target"]
MODEL = joblib.load(Path(__file__).with_name("model.joblib"))
CLASSES = MODEL.classes_.tolist()


def handler(event, context):
    started = time.perf_counter_ns()
    instances = event.get("instances", [event])
    x = np.array([[row[name] for name in FEATURES] for row in instances], dtype=float)
    predictions = [
        {TARGET: CLASSES[p.index(max(p))], "probabilities": dict(zip(CLASSES, p))}
        for p in MODEL.predict_proba(x).tolist()
    ]
    answer = {"predictions": predictions} if "instances" in event else predictions[0]
    answer["request_id"] = event["request_id"]
    answer["handler_us"] = (time.perf_counter_ns() - started) / 1e3
    return answer
