"""The client against brokers that do what the local cloud never does."""

import json
import signal
import subprocess

from clients import CLIENT, ROOT
from local_cloud import wait_for
from stand_in import StandIn

ROW = ("5.1", "3.5", "1.4", "0.2")


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
        wait_for(lambda: broker.arrived)
        client.send_signal(signal.SIGINT)
        said = client.stdout.readline()
        client.send_signal(signal.SIGINT)
        out, _ = client.communicate(timeout=10)
    assert "once more" in said
    assert client.returncode == 1 and "failed 16" in out, out


def test_a_refused_subscription_ends_it_with_the_next_step(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.grants = False
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--", *ROW]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, broker.arrived, broker.connections) == (1, "", 0, 1)
    assert "refuses page-live: the broker refuses the subscription to page/response/page-live; `make " in done.stderr


def test_a_subscription_refused_later_is_why_a_question_failed(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.delay = 60
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--deadline", "3", "--", *ROW]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: broker.arrived)
        broker.grants = False
        broker.hang_up()
        out, _ = client.communicate(timeout=30)
    assert client.returncode == 1 and broker.arrived == 1, out
    assert "no connection: the broker refuses the subscription to page/response/page-live" in out
