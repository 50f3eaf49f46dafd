#!/usr/bin/env python3
"""What our code adds to a round trip: the client and the function, without the broker, the rule and Lambda.

In turn, on one local cloud: our client and our function; then rumqttc alone and a function that sends back what it
got. The difference is ours. Writes target/round_trip.json; exits with 1 when a goal is missed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "deploy" / "tests"))

from clients import FUNCTION, Cloud, zipped  # noqa: E402

# The function as run.sh built it, the model as the peers' bench wrote it.
ZIP, MODEL = ROOT / "target/bench/iris_fn.zip", ROOT / "target/bench/model.json"
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
    with tempfile.TemporaryDirectory(prefix="round-trip-") as name:
        folder = Path(name)
        cloud = Cloud(folder / "local")
        cloud.must("local")
        try:
            cloud.must("bucket")
            cloud.publish(MODEL.read_bytes())
            cloud.must("deploy", ZIP=ZIP)
            device = cloud.deployer("device", "asker", "--dir", str(folder))
            assert device.wait(60) == 0, device.stdout.read()
            echo = zipped(folder / "echo.zip", bootstrap=(ROOT / "target/release/echo").read_bytes())
            function, builds = cloud.client("lambda"), {"bare": echo, "client": ZIP}
            versions = {}
            for by, build in builds.items():
                function.update_function_code(FunctionName=FUNCTION, ZipFile=build.read_bytes())
                function.get_waiter("function_updated_v2").wait(FunctionName=FUNCTION)
                versions[by] = function.publish_version(FunctionName=FUNCTION)["Version"]
            rounds = {"bare": [], "client": []}
            for n in range(ROUNDS):
                for by, version in versions.items():
                    function.update_alias(FunctionName=FUNCTION, Name="live", FunctionVersion=version)
                    rounds[by].append(percentiles(times(by, folder / "asker")))
                print(
                    f"round {n + 1} of {ROUNDS}: without ours {rounds['bare'][-1]}, with {rounds['client'][-1]}",
                    flush=True,
                )
        finally:
            cloud.make("stop")
    cases, bad = [], False
    for name, goal in GOALS.items():
        bare, ours = (statistics.median(each[name] for each in rounds[by]) for by in ("bare", "client"))
        ok = ours - bare <= goal
        bad |= not ok
        print(
            f"{name}: {ours:.2f} ms with our code, {bare:.2f} without: {ours - bare:+.2f} ms, goal {goal} {'ok' if ok else 'MISSED'}"
        )
        cases.append(
            {"name": name, "ours": ours, "bare": bare, "added": ours - bare, "unit": "ms", "goal": goal, "ok": ok}
        )
    (ROOT / "target/round_trip.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
