"""The client against brokers that do what the local cloud never does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy" / "tests"))

from clients import CLIENT  # noqa: E402
from stand_in import StandIn  # noqa: E402


def test_a_lost_acknowledgement_stops_nothing(tmp_path):
    """AWS IoT drops what it throttles without acknowledging it: its packet id is never free again."""
    with StandIn(tmp_path) as broker:
        broker.lost = {3}
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--json", "--csv", ROOT / "data/iris.csv"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    *_, summary = map(json.loads, done.stdout.splitlines())
    counters = summary["counters"]
    assert done.returncode == 0, (counters, done.stderr)
    assert (counters["asked"], counters["answered"], broker.connections) == (150, 150, 2), counters


def test_a_second_ctrl_c_ends_what_is_open(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.delay = 60
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--csv", ROOT / "data/iris.csv"]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while not broker.arrived:
            time.sleep(0.05)
        client.send_signal(signal.SIGINT)
        said = client.stdout.readline()
        client.send_signal(signal.SIGINT)
        out, _ = client.communicate(timeout=10)
    assert "once more" in said
    assert client.returncode == 1 and "failed 16" in out, out
