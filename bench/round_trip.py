#!/usr/bin/env python3
"""What our code adds to a round trip: the client and the function, without the broker, the rule and Lambda.

In turn, on one local cloud: our client and our function; then rumqttc alone and a function that sends back what it
got. The difference is ours. Writes target/round_trip.json; exits with 1 when a goal is missed.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "deploy" / "tests"))
# The function as run.sh built it, the model as the peers' bench wrote it.
os.environ["ZIP"] = str(ROOT / "target/bench/iris_fn.zip")

from clients import FUNCTION, ZIP, deployed_cloud, zipped  # noqa: E402

ROUNDS, COUNT = 5, 400
GOALS = {"p50": 3.0, "p99": 10.0}  # ms


def times(by, device):
    command = [ROOT / "target/release/round_trip", by, device, str(COUNT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"round_trip {by}: {done.stderr}")
    return sorted(us / 1e3 for us in json.loads(done.stdout))


def percentiles(sample):
    return {"p50": sample[len(sample) // 2], "p99": sample[len(sample) * 99 // 100]}


def main():
    model = (ROOT / "target/bench/model.json").read_bytes()
    with tempfile.TemporaryDirectory(prefix="round-trip-") as name, deployed_cloud(Path(name), model) as cloud:
        cloud.must("device", NAME="asker")
        echo = zipped(Path(name, "echo.zip"), bootstrap=(ROOT / "target/release/echo").read_bytes())
        function, versions = cloud.client("lambda"), {}
        for by, build in {"bare": echo, "client": ZIP}.items():
            function.update_function_code(FunctionName=FUNCTION, ZipFile=build.read_bytes())
            function.get_waiter("function_updated_v2").wait(FunctionName=FUNCTION)
            versions[by] = function.publish_version(FunctionName=FUNCTION)["Version"]
        rounds = {by: [] for by in versions}
        for n in range(ROUNDS):
            for by, version in versions.items():
                function.update_alias(FunctionName=FUNCTION, Name="live", FunctionVersion=version)
                rounds[by].append(percentiles(times(by, cloud.devices / "asker")))
            bare, ours = rounds["bare"][-1], rounds["client"][-1]
            print(f"round {n + 1} of {ROUNDS}: without ours {bare}, with {ours}", flush=True)
    cases = []
    for name, goal in GOALS.items():
        bare, ours = (statistics.median(each[name] for each in rounds[by]) for by in ("bare", "client"))
        added, ok = ours - bare, ours - bare <= goal
        verdict = f"goal {goal} {'ok' if ok else 'MISSED'}"
        print(f"{name}: {ours:.2f} ms with our code, {bare:.2f} without: {added:+.2f} ms, {verdict}")
        cases.append({"name": name, "ours": ours, "bare": bare, "added": added, "unit": "ms", "goal": goal, "ok": ok})
    (ROOT / "target/round_trip.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    return int(not all(each["ok"] for each in cases))


if __name__ == "__main__":
    sys.exit(main())
