"""The cheapest Python function: no library, the coefficients pasted in by hand."""

import time
from math import exp

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
CLASSES = ("setosa", "versicolor", "virginica")
WEIGHTS = (
    (-0.42350553807794267, 0.9673498593452036, -2.5171537411657474, -1.0793360613631535),
    (0.5344595534288595, -0.32158870656154626, -0.20639182962950564, -0.9442973969773316),
    (-0.11095401535091098, -0.6457611527836576, 2.7235455707952596, 2.023633458340492),
)
INTERCEPTS = (9.849549877713894, 2.237216694273421, -12.086766571986708)


def predict(flower):
    x = [float(flower[name]) for name in FEATURES]
    logits = [b + sum(w * v for w, v in zip(row, x)) for row, b in zip(WEIGHTS, INTERCEPTS)]
    top = max(logits)
    powers = [exp(z - top) for z in logits]
    total = sum(powers)
    probabilities = [p / total for p in powers]
    species = CLASSES[probabilities.index(max(probabilities))]
    return {"species": species, "probabilities": dict(zip(CLASSES, probabilities))}


def handler(event, context):
    started = time.perf_counter_ns()
    if "flowers" in event:
        answer = {"predictions": [predict(flower) for flower in event["flowers"]]}
    else:
        answer = predict(event)
    answer["request_id"] = event["request_id"]
    answer["handler_us"] = (time.perf_counter_ns() - started) / 1e3
    return answer
