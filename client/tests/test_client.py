"""The client against brokers that do what the local cloud never does."""

import json
import random
import re
import signal
import subprocess
import threading
import time

from clients import CLIENT, ROOT
from local_cloud import wait_for
from stand_in import StandIn

ROW = ("5.1", "3.5", "1.4", "0.2")


def asked(folder, rows, *arguments):
    """Ask about so many rows; the counters, after each was answered exactly once."""
    header, *flowers = (ROOT / "data/iris.csv").read_text().splitlines()
    csv = folder / "rows.csv"
    csv.write_text("\n".join([header, *(flowers * 9)[:rows]]) + "\n")
    command = [CLIENT, "--dir", folder, "predict", "--device", "live", "--json", "--csv", csv, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    *ends, summary = map(json.loads, done.stdout.splitlines())
    assert done.returncode == 0, (summary, done.stderr)
    answered = {end["request_id"] for end in ends if end["outcome"] == "answered"}
    assert (len(answered), len(ends)) == (rows, rows), summary
    return summary["counters"]


# --- acknowledgements -----------------------------------------------------------


def test_a_lost_acknowledgement_stops_nothing(tmp_path):
    """AWS IoT drops what it throttles without acknowledging it: its packet id is never free again."""
    with StandIn(tmp_path) as broker:
        broker.lost = {3}
        counters = asked(tmp_path, 300, "--pace", "1000")  # more than there are packet ids
    assert (counters["retried"] >= 1, broker.connections) == (True, 2), counters


def test_acknowledgements_late_out_of_order_and_after_the_packet_ids_wrapped_are_no_loss(tmp_path):
    with StandIn(tmp_path) as broker:
        late = random.Random(1)
        broker.acknowledges = lambda number: late.uniform(0.1, 1)
        counters = asked(tmp_path, 300, "--pace", "80")
    assert (counters["retried"], broker.connections) == (0, 1), counters


def test_a_broker_that_answers_and_never_acknowledges(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.acknowledges = lambda number: None
        counters = asked(tmp_path, 150, "--pace", "1000")
    assert broker.connections == 2, counters


def test_a_grant_of_the_connection_before_is_not_taken_for_this_ones(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.breaks = True
        counters = asked(tmp_path, 10)
    assert (broker.too_early, broker.connections, counters["retried"]) == (0, 2, 0), counters


# --- AWS's limits, and its bill ---------------------------------------------------


def disconnect_twice(broker):
    wait_for(lambda: broker.arrived > 50)
    broker.disconnect()
    wait_for(lambda: broker.connections == 2)
    broker.disconnect()


def test_a_broker_with_the_limits_of_aws_discards_at_most_one_message(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.aws = True
        began = time.monotonic()
        breaking = threading.Thread(target=disconnect_twice, args=(broker,))
        breaking.start()
        counters = asked(tmp_path, 200)
        breaking.join()
    assert broker.connections == 3 and time.monotonic() - began > 5, counters
    assert broker.discarded <= 1 and broker.too_soon == 0, (broker.discarded, broker.too_soon)


def test_a_client_that_is_too_fast_is_discarded_and_still_loses_nothing(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.aws = True
        counters = asked(tmp_path, 100, "--pace", "1000")
    assert broker.discarded > 1 and counters["retried"] > 1, (broker.discarded, counters)


def test_a_prediction_is_three_messages_and_by_basic_ingest_two(tmp_path):
    for messages, arguments in ((3, ()), (2, ("--basic-ingest",))):
        with StandIn(tmp_path / str(messages)) as broker:
            asked(broker.folder, 50, "--pace", "1000", *arguments)
        assert broker.metered == 2 + messages * 51, messages  # CONNECT, SUBSCRIBE, and the request to describe the model


def test_a_rate_that_one_device_cannot_have_is_refused_with_the_next_step(tmp_path):
    with StandIn(tmp_path) as broker:
        for command in (["predict", "--device", "live", "--rate", "101", "--", *ROW], ["load", "--devices", "1", "--rate", "101"]):
            done = subprocess.run([CLIENT, "--dir", tmp_path, *command], capture_output=True, text=True, timeout=30)
            assert done.returncode == 1 and "discards" in done.stderr and "DEVICES=3" in done.stderr, done.stderr
    assert broker.connections == 0


def test_two_clients_under_one_id_both_report_it(tmp_path):
    with StandIn(tmp_path) as broker:
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--rate", "15", "--csv", ROOT / "data/iris.csv"]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        clients = [subprocess.Popen(command, **pipes) for _ in range(2)]
        ended = [(client.communicate(timeout=60)[1], client.returncode) for client in clients]
    for errors, code in ended:
        assert code == 0 and errors.count("another client connects as page-live") == 1, errors
        assert "make device NAME=" in errors, errors


def test_a_request_that_failed_counts_with_its_deadline(tmp_path):
    with StandIn(tmp_path) as broker:
        (tmp_path / "live").rename(tmp_path / "load-1")
        broker.answers = 10
        load = ["load", "--devices", "1", "--rate", "20", "--seconds", "1", "--deadline", "2", "--json"]
        done = subprocess.run([CLIENT, "--dir", tmp_path, *load], capture_output=True, text=True, timeout=30)
    result = json.loads(done.stdout)
    assert (done.returncode, result["counters"]["answered"], result["counters"]["failed"]) == (1, 10, 10), done.stderr
    for times in (result["ms"], result["ms_since_sent"]):
        assert times["p50"] < 1000 and times["p90"] >= 2000, times


# --- what is not sent ----------------------------------------------------------------


def test_load_stops_on_time_and_reports_what_it_reached_and_what_was_not_sent(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.delay = 0.5  # 16 are pending at a time: 32 a second
        (tmp_path / "live").rename(tmp_path / "load-1")
        load = [CLIENT, "--dir", tmp_path, "load", "--devices", "1", "--rate", "500", "--pace", "1000", "--seconds", "2"]
        began = time.monotonic()
        done = subprocess.run(load, capture_output=True, text=True, timeout=60)
        took = time.monotonic() - began
    found = re.search(r"\n(\d+) answers a second, 500 were wanted\n(\d+) of 1000 requests were not sent", done.stdout)
    assert found and took < 5 and done.returncode == 1, (took, done.stdout, done.stderr)
    assert 20 < int(found[1]) < 40 and int(found[2]) == 1000 - broker.arrived, done.stdout


def test_ctrl_c_counts_the_rows_that_were_not_asked(tmp_path):
    rows = (ROOT / "data/iris.csv").read_text().splitlines()
    (tmp_path / "rows.csv").write_text("\n".join([rows[0], *rows[1:] * 10]) + "\n")
    with StandIn(tmp_path) as broker:
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--csv", tmp_path / "rows.csv"]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: broker.arrived > 50)
        client.send_signal(signal.SIGINT)
        out, errors = client.communicate(timeout=20)
    assert "1500 rows at 40 a second: 38 s; Ctrl-C stops" in errors
    left = int(re.search(r"stopped: (\d+) of 1500 rows were not asked", errors)[1])
    assert client.returncode == 1 and left == 1500 - broker.arrived and f"answered {broker.arrived}," in out, errors


def test_a_long_file_reports_how_long_it_takes(tmp_path):
    with StandIn(tmp_path):
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--rate", "13", "--csv", ROOT / "data/iris.csv"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and re.search(r"\n1\d\d asked, 1\d\d answered of 150, [12] s to go\n", done.stderr), done.stderr


def test_what_is_wrong_is_named_after_the_settings_of_make(tmp_path):
    (tmp_path / "requests").touch()
    expected = {
        ("predict", "--", "5.1", "3.5", "x", "0.2"): """"x" in ROW is not a number. The model asks for sepal_length,""",
        ("predict", "--", "5.1"): "ROW has 1 values, not 4. The model asks for",
        ("predict",): "which row? The model asks for sepal_length, sepal_width, petal_length, petal_width, in this order: make",
        ("predict", "--csv", "data/iris.csv", "--", "1"): "ROW and CSV are both set",
        ("predict", "--csv", "data/iris.cvs"): "cannot read data/iris.cvs: No such file",
        ("predict", "--csv", "~/iris.csv"): "cannot read ~/iris.csv: your shell left the ~ as it is, write $HOME for it",
        ("predict", "--csv", "data"): "cannot read CSV=data: Is a directory",
        ("predict", "--rate", "fast"): 'RATE="fast": expected a number',
        ("predict", "--requests", str(tmp_path / "requests")): "nothing was asked",
        ("load", "--devices", "0"): 'DEVICES="0": 0 is not in 1..=1000',
    }  # fmt: skip
    with StandIn(tmp_path):
        for arguments, message in expected.items():
            command = [CLIENT, "--dir", tmp_path, *arguments[:1], *(["--device", "live"] * (arguments[0] == "predict")), *arguments[1:]]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
            assert done.returncode in (1, 2) and message in done.stderr and "Usage" not in done.stderr, (arguments, done.stderr)
        for row in ("5.1 3.5 1.4 0.2", "5.1,3.5,1.4,0.2", "5,1 3,5 1,4 0,2", "5.1; 3.5; 1.4; 0.2"):
            command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--", *row.split(" ")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30)
            assert done.returncode == 0 and "setosa      0.982" in done.stdout, (row, done.stderr)


# --- Ctrl-C, refusals -------------------------------------------------------------


def test_a_second_ctrl_c_ends_what_is_pending(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.delay = 60
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--csv", ROOT / "data/iris.csv"]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: broker.arrived == 16)
        client.send_signal(signal.SIGINT)
        line = client.stdout.readline()
        client.send_signal(signal.SIGINT)
        out, _ = client.communicate(timeout=10)
    assert "once more" in line
    assert client.returncode == 1 and "failed 16" in out, out


def test_a_refused_subscription_ends_it_with_the_next_step(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.grants = False
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--", *ROW]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, broker.arrived, broker.connections) == (1, "", 0, 1)
    assert "refuses page-live: the broker refuses the subscription to page/response/page-live; `make " in done.stderr


def test_a_subscription_refused_later_is_why_a_request_failed(tmp_path):
    with StandIn(tmp_path) as broker:
        broker.delay = 60
        command = [CLIENT, "--dir", tmp_path, "predict", "--device", "live", "--deadline", "3", "--", *ROW]
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        wait_for(lambda: broker.arrived)
        broker.grants = False
        broker.disconnect()
        out, _ = client.communicate(timeout=30)
    assert client.returncode == 1 and broker.arrived == 1, out
    assert "no connection: the broker refuses the subscription to page/response/page-live" in out
