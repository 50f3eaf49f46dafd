"""The cheapest Python function: no library, the coefficients in a file."""

import json
import time
from math import exp
from pathlib import Path

MODEL = json.loads(Path(__file__).with_name("model.json").read_text())
FEATURES, CLASSES, TARGET = MODEL["features"], MODEL["classes"], MODEL["target"]
WEIGHTS, INTERCEPTS = MODEL["weights"], MODEL["intercepts"]


def predict(row):
    x = [float(row[name]) for name in FEATURES]
    logits = [b + sum(w * v for w, v in zip(weights, x)) for weights, b in zip(WEIGHTS, INTERCEPTS)]
    top = max(logits)
    powers = [exp(z - top) for z in logits]
    total = sum(powers)
    probabilities = [p / total for p in powers]
    label = CLASSES[probabilities.index(max(probabilities))]
    return {TARGET: label, "probabilities": dict(zip(CLASSES, probabilities))}


def handler(event, context):
    started = time.perf_counter_ns()
    if "instances" in event:
        answer = {"predictions": [predict(row) for row in event["instances"]]}
    else:
        answer = predict(event)
    answer["request_id"] = event["request_id"]
    answer["handler_us"] = (time.perf_counter_ns() - started) / 1e3
    return answer
