"""The same model in ONNX Runtime, which many teams choose to leave scikit-learn out of the zip."""

import time
from pathlib import Path

import numpy as np
import onnxruntime

FEATURES = ("sepal_length", "sepal_width", "petal_length", "petal_width")
CLASSES = ("setosa", "versicolor", "virginica")

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # a small function has less than one core
SESSION = onnxruntime.InferenceSession(
    str(Path(__file__).with_name("iris.onnx")), options, providers=["CPUExecutionProvider"]
)


def handler(event, context):
    started = time.perf_counter_ns()
    flowers = event.get("flowers", [event])
    x = np.array([[flower[name] for name in FEATURES] for flower in flowers], dtype=np.float64)
    predictions = [
        {"species": CLASSES[p.index(max(p))], "probabilities": dict(zip(CLASSES, p))}
        for p in SESSION.run(["probabilities"], {"flowers": x})[0].tolist()
    ]
    answer = {"predictions": predictions} if "flowers" in event else predictions[0]
    answer["request_id"] = event["request_id"]
    answer["handler_us"] = (time.perf_counter_ns() - started) / 1e3
    return answer
