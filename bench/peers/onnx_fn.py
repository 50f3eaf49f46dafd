"""The same model in ONNX Runtime, which many teams choose to leave scikit-learn out of the zip."""

import json
import time
from pathlib import Path

import numpy as np
import onnxruntime

MODEL = json.loads(Path(__file__).with_name("model.json").read_text())
FEATURES, CLASSES, TARGET = MODEL["features"], MODEL["classes"], MODEL["target"]

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1  # a small function has less than one core
SESSION = onnxruntime.InferenceSession(
    str(Path(__file__).with_name("model.onnx")), options, providers=["CPUExecutionProvider"]
)


def handler(event, context):
    started = time.perf_counter_ns()
    instances = event.get("instances", [event])
    x = np.array([[row[name] for name in FEATURES] for row in instances], dtype=np.float64)
    predictions = [
        {TARGET: CLASSES[p.index(max(p))], "probabilities": dict(zip(CLASSES, p))}
        for p in SESSION.run(["probabilities"], {"instances": x})[0].tolist()
    ]
    answer = {"predictions": predictions} if "instances" in event else predictions[0]
    answer["request_id"] = event["request_id"]
    answer["handler_us"] = (time.perf_counter_ns() - started) / 1e3
    return answer
