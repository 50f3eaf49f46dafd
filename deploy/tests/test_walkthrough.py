"""The whole cloud path, as a user drives it and as an outside client meets it.

The path is the workshop's own: `make bucket`, publish a model, `make deploy`, `make device`, ask over MQTT,
`make destroy`. The fixture below takes it with the Makefile itself; the tests, here and in other files, call the
deployer as the Makefile does. Notebooks 02 to 04 publish and ask with the Rust SDK and rumqttc, and are tested on
their own; here boto3 and paho-mqtt do it (clients.py). What is right is said by scikit-learn:
iris_fn/tests/reference.json holds the weights that it found for the same data.

The local cloud is started here, on ports and in a folder of its own, beside whatever else is running. The tests
share one deployed stack, and the last one takes it away.
"""

import json
import math
import os
import queue
import random
import socket
import ssl
import time
from datetime import datetime, timedelta, timezone
from functools import partial

import pytest
from botocore.exceptions import ClientError
from clients import (
    ACCOUNT, BUCKET, DEPLOY, DEVICES, FUNCTION, LABEL, NAMES, REFERENCE, REGION, ROOT, ROW, STACK, TARGET, Cloud, expected,
    iris, probabilities, request, run, sha256,
)  # fmt: skip
from test_local import alive, free_ports, wait_for

US, OTHER = "us", "other"  # two devices
BY_MAKE = f"walkthrough-{os.getpid()}"  # a third, in the folder that `make device` uses


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, model):
    """A cloud with the stack, a model and three devices in it; afterwards nothing of that is left."""
    folder = tmp_path_factory.mktemp("walkthrough")
    cloud = Cloud(folder / "local", folder / "devices")
    by_make = partial(cloud.must, make=cloud.by_make)
    by_make("local")
    pid = json.loads((cloud.dir / "pid").read_text())["pid"]
    try:
        by_make("bucket")
        cloud.publish(model)
        if not os.environ.get("ZIP"):
            cloud.zip = folder / "iris_fn.zip"  # other files read the usual one
            by_make("build")
        by_make("deploy")
        by_make("device", NAME=BY_MAKE)
        assert by_make("device-dir", NAME=BY_MAKE) == f"{(DEVICES / BY_MAKE).relative_to(ROOT)}\n"
        for name in (US, OTHER):
            cloud.must("device", NAME=name)
        yield cloud
    finally:
        destroy = cloud.deployer("destroy")  # in the usual folder: `make device` wrote to it
        said, _ = destroy.communicate(timeout=120)
        by_make("stop")
    assert destroy.returncode == 0, said
    assert not (DEVICES / BY_MAKE).exists()
    wait_for(lambda: not alive(pid), 5)


@pytest.fixture
def device(cloud):
    """The first device, connected and listening to its answers."""
    with cloud.device(US) as device:
        yield device.listening()


# --- what `make` calls ------------------------------------------------------


def test_make_calls_what_these_tests_call(cloud):
    targets = "local bucket publish plan deploy versions rollback device device-dir dlq redrive status invoke logs policy boundary cost destroy"
    for target in [*targets.split(), "class", "class-destroy", "stop"]:
        code, out, err = cloud.by_make(target, "--dry-run")
        assert code == 0, err
        theirs, ours = out.splitlines()[-1], " ".join(map(str, cloud.command(target, NAME='"$NAME"', MODEL='"$MODEL"')))
        theirs, ours = (line.replace(f"{ROOT}/", "").partition(" --dir ")[0] for line in (theirs, ours))
        assert theirs.endswith(ours.partition(" ")[2]), (theirs, ours)  # without the program: Python's path differs


def test_make_sets_what_these_tests_set(cloud):
    others = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_CONFIG_FILE")
    others = {name: "mine" for name in others}
    settings = {**cloud.settings, "TO": "3", "DEPLOY": "env; :"}  # in the deployer's place: what does it see?
    code, out, err = run("make", "versions", *(f"{name}={value}" for name, value in settings.items()), **others)
    assert code == 0, err
    seen = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    ours = {name: value for name, value in cloud.environment.items() if name not in ("PATH", "HOME")}
    assert {**ours, "TO": "3"}.items() <= seen.items()
    assert "mine" not in seen.values()


def test_make_hands_a_row_over_as_it_was_written(cloud):
    """As one word each, also where a shell would find a file's name in it."""
    code, out, err = cloud.by_make("predict", ROW="5.1 -3.5 * 1e-1", DEPLOY=":", CLIENT="printf '%s\\n'")
    assert code == 0, err
    assert out.splitlines() == ["predict", "--", "5.1", "-3.5", "*", "1e-1"]


# --- the model --------------------------------------------------------------


def test_the_model_is_the_one_that_scikit_learn_finds(model):
    model = json.loads(model)
    for row, reference in zip(model["weights"], REFERENCE["weights_class_by_feature"], strict=True):
        assert row == pytest.approx(reference, abs=1e-3)
    assert model["intercepts"] == pytest.approx(REFERENCE["intercepts"], abs=1e-3)
    assert model["training"]["log_loss"] == pytest.approx(REFERENCE["train_log_loss"], abs=1e-4)
    assert model["training"]["cv_accuracy"] == pytest.approx(REFERENCE["five_fold"]["mean"], abs=1e-3)
    for probe in REFERENCE["probes"]:
        assert probabilities(model["weights"], model["intercepts"], probe["x"]) == pytest.approx(probe["p"], abs=1e-4)


def test_the_model_file_keeps_the_contract(model):
    model, rows = json.loads(model), iris()
    assert list(model) == "schema kind target features classes weights intercepts training golden".split()
    assert (model["schema"], model["kind"], model["target"]) == (2, "multinomial_logistic_regression", TARGET)
    for feature, name, column in zip(model["features"], NAMES, zip(*(x for x, _ in rows)), strict=True):
        low, high = feature.pop("accept")
        assert feature == {"name": name, "unit": "cm", "min": min(column), "max": max(column)}
        assert low <= min(column) and max(column) <= high
    assert model["classes"] == REFERENCE["classes"]
    assert [len(row) for row in model["weights"]] == [4, 4, 4] and len(model["intercepts"]) == 3
    training = model["training"]
    assert set(training) == set("data_sha256 rows alpha iterations gradient_norm log_loss cv_accuracy".split())
    assert training["data_sha256"] == REFERENCE["iris_csv_sha256"] == sha256((ROOT / "data/iris.csv").read_bytes())
    assert (training["rows"], training["alpha"]) == (len(rows), 1.0)
    assert model["golden"]
    for row in model["golden"]:
        assert set(row) == {"features", "probabilities"}
        again = probabilities(model["weights"], model["intercepts"], row["features"])
        assert again == pytest.approx(row["probabilities"], rel=0, abs=1e-9)


# --- deploying --------------------------------------------------------------


def test_a_second_deploy_or_bucket_changes_nothing(cloud):
    def state():
        return cloud.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"], cloud.alias()

    before = state()
    assert f"stack     {STACK}: no changes" in cloud.must("deploy")
    assert f"bucket {BUCKET} is there" in cloud.must("bucket")
    assert state() == before


def edited(model):
    """A weight changed by hand: still JSON, still the right shape."""
    model = json.loads(model)
    model["weights"][0][2] += 0.001
    return json.dumps(model).encode()


@pytest.mark.parametrize(
    "damage, reason", [(edited, "golden row 0"), (lambda model: model[: len(model) // 2], "not a model file")]
)
def test_a_damaged_model_is_not_deployed_and_live_keeps_the_good_one(cloud, model, damage, reason):
    live, storage = cloud.alias(), cloud.client("s3")
    storage.put_object(Bucket=BUCKET, Key="models/current.json", Body=damage(model))
    try:
        code, _, err = cloud.make("deploy")
        assert code != 0
        assert f"s3://{BUCKET}/models/current.json is refused: " in err and reason in err
        assert cloud.alias() == live
        assert cloud.invoke(request())["model"] == sha256(model)
    finally:
        cloud.publish(model)


@pytest.mark.parametrize(
    "target, setting, rule",
    [
        ("bucket", {"STACK": "Bad_Name"}, "a stack name is 1 to 20 lower-case letters and digits, a letter first"),
        ("device", {"NAME": "../lily"}, "a device name is 1 to 64 letters, digits, `-` or `_`"),
    ],
)
def test_a_wrong_name_is_refused_with_the_rule(cloud, target, setting, rule):
    code, _, err = cloud.make(target, **setting)
    assert code != 0 and rule in err


def test_a_cloud_that_is_down_is_named_with_the_way_out():
    """`make status` would start it: this is what it calls, with the settings that it passes on."""
    url, began = f"http://127.0.0.1:{free_ports(1)[0]}", time.monotonic()
    code, out, err = run(
        DEPLOY, "status", STACK=STACK, TARGET="local", AWS_ENDPOINT_URL=url, AWS_REGION=REGION,
        AWS_ACCESS_KEY_ID="test", AWS_SECRET_ACCESS_KEY="test",
    )  # fmt: skip
    assert code != 0 and out == ""
    assert err.startswith(f"error: no answer from the local cloud at {url}") and "`make local` starts it" in err
    assert err.count("\n") == 1
    assert time.monotonic() - began < 20


# --- a direct call ----------------------------------------------------------


def test_a_direct_call_is_answered_with_every_field_of_the_contract(cloud, model):
    answer = cloud.invoke(request())
    assert set(answer) == set(f"request_id {TARGET} probabilities in_distribution model cold_start handler_us".split())
    assert (answer["request_id"], answer[TARGET], answer["in_distribution"]) == ("r", LABEL, True)
    assert answer["model"] == sha256(model)
    assert answer["probabilities"] == expected(ROW.values())
    assert type(answer["cold_start"]) is bool and type(answer["handler_us"]) is int


def test_a_batch_is_answered_in_order(cloud):
    rows = iris()[::-1]
    instances = [dict(zip(NAMES, x)) for x, _ in rows]
    answer = cloud.invoke(json.dumps({"request_id": "r", "instances": instances}))
    assert set(answer) == {"request_id", "predictions", "model", "cold_start", "handler_us"}
    assert [p["probabilities"] for p in answer["predictions"]] == [expected(x) for x, _ in rows]
    assert sum(p[TARGET] == label for p, (_, label) in zip(answer["predictions"], rows, strict=True)) == 146


def test_a_warm_up_is_answered_as_such(cloud):
    assert cloud.invoke(b'{"warmup": true}') == {"warm": True, "cold_start": False}


# --- over MQTT --------------------------------------------------------------


def test_200_rows_that_training_never_saw_are_answered_right(device, model):
    dice, seen, rows = random.Random(2026), {x for x, _ in iris()}, {}
    ranges = [(feature["min"], feature["max"]) for feature in json.loads(model)["features"]]
    while len(rows) < 200:
        reach = dice.choice([ranges, [(0, 10)] * 4])  # what training saw; what it need not have seen
        x = tuple(round(dice.uniform(low, high), 2) for low, high in reach)
        if x not in seen:
            rows[f"row-{len(rows)}"] = x
    answers = device.ask({"request_id": name, **dict(zip(NAMES, x))} for name, x in rows.items())
    assert answers.keys() == rows.keys()
    for name, x in rows.items():
        assert answers[name]["probabilities"] == expected(x)
        assert answers[name]["in_distribution"] == all(low <= v <= high for v, (low, high) in zip(x, ranges))
        assert answers[name]["model"] == sha256(model)
    assert 50 < sum(answer["in_distribution"] for answer in answers.values()) < 150  # there were both kinds


def test_a_batch_too_large_for_mqtt_is_refused_with_the_number_that_fits(device):
    instances = [ROW] * 1000
    refusal = device.ask([{"request_id": "all", "instances": instances}])["all"]["error"]
    assert refusal["code"] == "too_many_instances"
    fit = int(refusal["message"].partition("at most ")[2].split()[0])
    answer = device.ask([{"request_id": "fit", "instances": instances[:fit]}])["fit"]
    assert len(answer["predictions"]) == fit > 500


LAST = NAMES[-1]
REFUSALS = {
    "empty": (b"", "malformed_json", None),
    "not UTF-8": (b'{"request_id": "r", "x": "\xff"}', "malformed_json", "r"),
    "half a request": (request()[:40], "malformed_json", "r"),
    "a list": (b"[5.1, 3.5, 1.4, 0.2]", "malformed_json", None),
    "deep": (b"[" * 200, "malformed_json", None),
    "NaN": (request(**{LAST: math.nan}), "malformed_json", "r"),
    "request_id a number": (request(request_id=7), "malformed_json", 7),
    "no request_id": (json.dumps(ROW).encode(), "missing_field", None),
    "a warm-up": (b'{"warmup": true}', "missing_field", None),
    "a field missing": (request().replace(LAST.encode(), b"other"), "missing_field", "r"),
    "a field missing in a list": (b'{"request_id": "r", "instances": [{}]}', "missing_field", "r"),
    "a string": (request(**{LAST: "0.2"}), "not_a_number", "r"),
    "1e308": (request(**{LAST: 1e308}), "out_of_range", "r"),
    "negative": (request(**{LAST: -0.1}), "out_of_range", "r"),
    "instances and fields": (request(instances=[ROW]), "malformed_json", "r"),
}


@pytest.mark.parametrize("payload, code, request_id", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_bad_message_is_refused_with_its_code(device, payload, code, request_id):
    device.send(payload)
    refusal = device.inbox.get(timeout=10)
    assert refusal.keys() == {"request_id", "error"} and refusal["error"].keys() == {"code", "message"}
    assert (refusal["error"]["code"], refusal["request_id"]) == (code, request_id)
    assert refusal["error"]["message"]


def test_a_bad_direct_call_gets_the_same_refusal(cloud):
    many = json.dumps({"request_id": "r", "instances": [ROW] * 10_001})
    names = ("a list", "no request_id", "a field missing", "a string", "1e308", "instances and fields")
    for payload, *right in [(many, "too_many_instances", "r"), *(REFUSALS[name] for name in names)]:
        refusal = cloud.invoke(payload)
        assert [refusal["error"]["code"], refusal["request_id"]] == right


def test_no_call_has_failed_and_no_dead_letter_was_left(cloud):
    """A failed call is counted at once; the dead-letter queue gets it after the last retry."""
    now, metrics, queues = datetime.now(timezone.utc), cloud.client("cloudwatch"), cloud.client("sqs")

    def total(metric):
        points = metrics.get_metric_statistics(
            Namespace="AWS/Lambda", MetricName=metric, Dimensions=[{"Name": "FunctionName", "Value": FUNCTION}],
            StartTime=now - timedelta(hours=1), EndTime=now + timedelta(minutes=1), Period=7200, Statistics=["Sum"],
        )  # fmt: skip
        return sum(point["Sum"] for point in points["Datapoints"])

    assert total("Invocations") > 0 and total("Errors") == 0
    url = queues.get_queue_url(QueueName=f"{STACK}-dead-letters")["QueueUrl"]
    assert "Messages" not in queues.receive_message(QueueUrl=url, WaitTimeSeconds=1)


# --- what a device may not --------------------------------------------------


def test_without_a_certificate_the_handshake_fails(cloud):
    tls = ssl.create_default_context(cafile=cloud.devices / US / "ca.pem")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        with socket.create_connection(("127.0.0.1", cloud.mqtt), timeout=10) as plain:
            with tls.wrap_socket(plain, server_hostname="127.0.0.1", suppress_ragged_eofs=False) as secure:
                secure.recv(1)  # in TLS 1.3 the client is done with its part before the broker refuses


def test_a_device_cannot_be_another(cloud):
    with cloud.device(US, client_id=f"{STACK}-{OTHER}") as impostor:
        assert not impostor.accepted


@pytest.mark.parametrize(
    "topic", ["#", "+/response/+", f"{STACK}/response/#", f"{STACK}/response/{STACK}-{OTHER}", f"{STACK}/request/+"]
)
def test_a_device_cannot_listen_to_others(cloud, device, topic):
    assert not device.subscribe(topic)
    with cloud.device(OTHER) as other:
        assert other.listening().ask([{"request_id": "private", **ROW}])
    with pytest.raises(queue.Empty):
        device.inbox.get(timeout=0.5)


@pytest.mark.parametrize("kind", ["request", "response"])
def test_a_device_cannot_speak_for_others(cloud, device, kind):
    with cloud.device(OTHER) as other:
        other.listening()
        device.client.publish(f"{STACK}/{kind}/{other.id}", request(request_id="forged"), qos=1)
        time.sleep(0.5)
        assert other.ask([{"request_id": "own", **ROW}]).keys() == {"own"}  # it would have heard


# --- the end: keep these tests the last -------------------------------------


def test_a_new_model_is_served_after_the_next_deploy(cloud, model):
    retrained = model.replace(b'"iterations": ', b'"iterations": 1')  # another file, the same weights
    cloud.publish(retrained)
    cloud.must("deploy")
    assert cloud.invoke(request())["model"] == sha256(retrained)


def test_destroy_takes_all_of_the_stack_and_nothing_else(cloud):
    storage, iot = cloud.client("s3"), cloud.client("iot")
    neighbour = f"{STACK}about"  # a name that begins with ours
    storage.create_bucket(Bucket=f"{neighbour}-{ACCOUNT}-{REGION}")
    iot.create_thing(thingName=f"{neighbour}-lily", attributePayload={"attributes": {"stack": neighbour}})
    storage.delete_object(Bucket=BUCKET, Key="models/current.json")  # leaves a delete marker, and versions below
    assert len(iot.list_certificates()["certificates"]) == 3

    assert f"nothing of stack {STACK} is left" in cloud.must("destroy", make=cloud.by_make)

    with pytest.raises(ClientError, match="does not exist"):
        cloud.client("cloudformation").describe_stacks(StackName=STACK)
    assert [bucket["Name"] for bucket in storage.list_buckets()["Buckets"]] == [f"{neighbour}-{ACCOUNT}-{REGION}"]
    assert [thing["thingName"] for thing in iot.list_things()["things"]] == [f"{neighbour}-lily"]
    assert not iot.list_certificates()["certificates"] and not iot.list_policies()["policies"]
    assert not iot.list_topic_rules()["rules"] and not cloud.client("lambda").list_functions()["Functions"]
    assert not cloud.client("sqs").list_queues().get("QueueUrls")
    roles = cloud.client("iam").list_roles()["Roles"]
    assert not [role["RoleName"] for role in roles if role["RoleName"].startswith(f"{STACK}-")]
    assert not cloud.client("logs").describe_log_groups(logGroupNamePrefix=f"/aws/lambda/{STACK}")["logGroups"]
    assert not (DEVICES / BY_MAKE).exists()

    assert f"nothing of stack {STACK} is left" in cloud.must("destroy")  # the other devices' folders
    assert not cloud.devices.exists()
    assert cloud.must("destroy").endswith(f"nothing of stack {STACK} is there\n")
