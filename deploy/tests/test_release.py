"""Deploys that go wrong: killed, at the same moment, with code that lies. `live` must never notice.

Other code is the real program with another file beside it in the zip. Code that lies is a `bootstrap` of a few
lines of Python that speaks the Runtime API and computes the model's probabilities, unless it is told not to.
"""

import base64
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from botocore.exceptions import ClientError
from clients import FUNCTION, LABEL, ROW, STACK, TARGET, ZIP, Cloud, iris, request, sha256, size, zipped
from test_local import wait_for

LIAR = '''#!{python} -I
import base64, json, math, os, urllib.request
MODEL, SHA256 = {model!r}, {sha256!r}
URL = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
NAMES = [feature["name"] for feature in MODEL["features"]]
GOLDEN = [row["features"] for row in MODEL["golden"]]

def predict(instance):
    x = [instance[name] for name in NAMES]
    z = [b + sum(w * v for w, v in zip(row, x)) for row, b in zip(MODEL["weights"], MODEL["intercepts"])]
    powers = [math.exp(each - max(z)) for each in z]
    p = [power / sum(powers) for power in powers]
    {lie}
    label = MODEL["classes"][p.index(max(p))]
    return {{MODEL["target"]: label, "probabilities": dict(zip(MODEL["classes"], p)), "in_distribution": True}}

while True:
    with urllib.request.urlopen(URL + "next") as reply:
        request, event = reply.headers["Lambda-Runtime-Aws-Request-Id"], json.load(reply)
    if "payload" in event:  # as the rule calls it
        event = json.loads(base64.b64decode(event["payload"]))
    answer = {{"request_id": event["request_id"], "model": SHA256, "cold_start": False, "handler_us": 1}}
    if "describe" in event:
        answer = {{"request_id": event["request_id"], "model": SHA256}}
        answer |= {{name: MODEL[name] for name in ("target", "features", "classes")}}
    elif "instances" in event:
        answer["predictions"] = [predict(instance) for instance in event["instances"]]
    else:
        answer |= predict(event)
    urllib.request.urlopen(URL + request + "/response", json.dumps(answer).encode()).close()
'''


@pytest.fixture(scope="module")
def builds(tmp_path_factory):
    """Two zips that answer alike and are not the same."""
    folder = tmp_path_factory.mktemp("builds")
    program = zipfile.ZipFile(ZIP).read("bootstrap")
    return [zipped(folder / f"{name}.zip", bootstrap=program, note=name) for name in ("one", "other")]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory, model, builds):
    folder = tmp_path_factory.mktemp("release")
    cloud = Cloud(folder / "local", folder / "devices")
    cloud.must("local")
    try:
        cloud.must("bucket")
        cloud.publish(model)
        cloud.must("deploy", ZIP=builds[0])
        yield cloud
    finally:
        code, *said = cloud.make("destroy")
        cloud.must("stop")
    assert code == 0, said


def code_behind(cloud, qualifier="live"):
    """The SHA-256 of the code that answers, in base64."""
    return cloud.client("lambda").get_function(FunctionName=FUNCTION, Qualifier=qualifier)["Configuration"]["CodeSha256"]


def hash_of(path):
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()


class Load:
    """Callers that ask `live` all the time, one row after the other, and keep what was lost or wrong."""

    def __init__(self, cloud, callers=3):
        self.cloud, self.bad, self.over = cloud, [], threading.Event()
        self.asked, self.total = itertools.count(1), 0
        requests = [request(**dict(zip(ROW, x))) for x, _ in iris()[::10]]
        self.truth = {asked: self.ask(cloud.client("lambda"), asked) for asked in requests}  # before anything moves
        self.pool = ThreadPoolExecutor(callers)
        for _ in range(callers):
            self.pool.submit(self.run)

    def ask(self, client, payload):
        reply = client.invoke(FunctionName=FUNCTION, Qualifier="live", Payload=payload)
        answer = json.loads(reply["Payload"].read())
        return answer.get(TARGET), answer.get("probabilities")

    def run(self):
        client, requests = self.cloud.client("lambda"), itertools.cycle(self.truth)
        while not self.over.is_set():
            asked = next(requests)
            try:
                answer = self.ask(client, asked)
                if answer != self.truth[asked]:
                    self.bad.append((asked, answer))
            except Exception as error:  # whatever it is, the caller has no answer
                self.bad.append((asked, repr(error)))
            self.total = next(self.asked)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.over.set()
        self.pool.shutdown()


# --- a day in the life ------------------------------------------------------


def test_deploy_twice_plan_status_rollback_in_a_row(cloud, builds):
    cloud.must("deploy", ZIP=builds[0])
    before = cloud.alias()
    code, out, _ = cloud.make("plan", ZIP=builds[1])
    assert code == 2 and "`make deploy` would do this" in out  # there is something to do
    assert cloud.alias() == before and code_behind(cloud, "$LATEST") == hash_of(builds[0])

    cloud.must("deploy", ZIP=builds[1])
    deployed = cloud.alias()
    assert deployed != before and code_behind(cloud) == hash_of(builds[1])
    assert f"stack     {STACK}: no changes" in cloud.must("deploy", ZIP=builds[1])
    assert cloud.must("plan", ZIP=builds[1]).endswith("nothing to do\n")
    assert cloud.alias() == deployed
    assert "live is version" in cloud.must("status")

    assert "live moved" in cloud.must("rollback")
    reply = cloud.client("lambda").invoke(FunctionName=FUNCTION, Qualifier="live", Payload=request())
    assert reply["ExecutedVersion"] == before[0] and code_behind(cloud) == hash_of(builds[0])
    assert "live moved" in cloud.must("rollback", TO=deployed[0])
    assert cloud.must("plan", ZIP=builds[1]).endswith("nothing to do\n")

    listed = cloud.must("versions")
    assert f"live     version {deployed[0]} " in listed and f"         version {before[0]} " in listed


def test_a_rollback_says_what_it_cannot(cloud):
    for settings, reason in [
        ({"TO": "999"}, "there is no version 999"),
        ({"WHAT": "model", "TO": "ffff"}, "there is no model ffff"),
        ({"WHAT": "model"}, "there is no model before the current one"),
        ({"WHAT": "weather"}, "invalid value 'weather'"),
    ]:
        code, _, err = cloud.make("rollback", **settings)
        assert code != 0 and reason in err


def test_a_model_goes_back_too_and_again_to_where_it_was(cloud, model):
    softer = json.loads(model)
    softer["training"]["iterations"] += 1  # another file, the same weights
    softer = json.dumps(softer).encode()
    cloud.publish(softer)
    try:
        assert sha256(model)[:12] in cloud.must("rollback", WHAT="model")
        assert cloud.current() == model
        wait_for(lambda: cloud.invoke(request())["model"] == sha256(model), 20)
        cloud.must("rollback", WHAT="model", TO=sha256(softer)[:8])
        assert cloud.current() == softer
        assert f"current  {sha256(softer)[:12]}" in cloud.must("versions")
    finally:
        cloud.publish(model)
        wait_for(lambda: cloud.invoke(request())["model"] == sha256(model), 20)


def test_keep_warm_is_a_schedule_that_can_be_turned_off_again(cloud, builds):
    events, name = cloud.client("events"), f"{STACK}-keep-warm"
    cloud.must("deploy", ZIP=builds[1], KEEP_WARM="rate(5 minutes)")
    assert events.describe_rule(Name=name)["ScheduleExpression"] == "rate(5 minutes)"
    [target] = events.list_targets_by_rule(Rule=name)["Targets"]
    assert target["Arn"].endswith(f":{FUNCTION}:live") and json.loads(target["Input"]) == {"warmup": True}
    code, _, err = cloud.make("deploy", ZIP=builds[1], KEEP_WARM="sometimes")
    assert code != 0 and "KEEP_WARM" in err
    cloud.must("deploy", ZIP=builds[1])
    with pytest.raises(ClientError, match="ResourceNotFound"):
        events.describe_rule(Name=name)


# --- under load -------------------------------------------------------------


def test_no_call_is_lost_or_wrong_while_live_moves(cloud, builds):
    with Load(cloud) as load:
        moves = 0
        while load.total < size(300, 2000) or moves < 4:
            cloud.must("deploy", ZIP=builds[moves % 2])
            cloud.must("rollback")
            moves += 2
    assert load.bad == []
    print(f"{load.total} calls, {moves} moves of live")


@pytest.mark.parametrize(
    "lie, reason, excuse",
    [
        ("p = p[::-1]", f"golden row 0: P({LABEL}) is", None),
        ("p = p if x in GOLDEN else p[::-1]", "and MAX_CHANGED is 0", {"MAX_CHANGED": 750}),
        ("raise SystemExit", "failed (", None),
    ],
)
def test_a_version_that_lies_never_answers_a_call(cloud, builds, model, tmp_path, lie, reason, excuse):
    script = LIAR.format(python=sys.executable, model=json.loads(model), sha256=sha256(model), lie=lie)
    liar = zipped(tmp_path / "liar.zip", bootstrap=script)
    cloud.must("deploy", ZIP=builds[0])
    before = cloud.alias()
    with Load(cloud) as load:
        code, _, err = cloud.make("deploy", ZIP=liar)
        wait_for(lambda: load.total >= size(300, 1000), 120)
    assert code != 0 and reason in err
    assert f"is deleted, `live` stays at version {before[0]}" in err
    assert load.bad == []
    assert cloud.alias() == before
    versions = cloud.client("lambda").list_versions_by_function(FunctionName=FUNCTION)["Versions"]
    assert hash_of(liar) not in [each["CodeSha256"] for each in versions if each["Version"] != "$LATEST"]
    if excuse:  # somebody who wants that can have it
        cloud.must("deploy", ZIP=liar, **excuse)
        assert code_behind(cloud) == hash_of(liar)
        cloud.must("rollback", TO=before[0])
    cloud.must("deploy", ZIP=builds[0], **(excuse or {}))


def rule(cloud):
    return cloud.client("iot").get_topic_rule(ruleName=f"{STACK}_rule")["rule"]["ruleDisabled"]


def test_a_failed_check_deletes_only_a_version_that_this_deploy_has_made(cloud, builds, model, tmp_path):
    """PublishVersion gives back the last version where nothing has changed since: one that was good once stays."""
    script = LIAR.format(python=sys.executable, model=json.loads(model), sha256=sha256(model), lie="pass")
    honest = zipped(tmp_path / "honest.zip", bootstrap=script)
    cloud.must("deploy", ZIP=builds[0])
    before, _ = cloud.alias()
    cloud.must("deploy", ZIP=honest)
    good, _ = cloud.alias()
    cloud.must("rollback", TO=before)
    other = model.replace(b'"iterations": ', b'"iterations": 1')  # the honest one knows only the first
    cloud.publish(other)
    try:
        code, out, err = cloud.make("deploy", ZIP=honest)
        assert code != 0 and f"version {good} fails, and stays" in err, out + err
        versions = cloud.client("lambda").list_versions_by_function(FunctionName=FUNCTION)["Versions"]
        assert good in [each["Version"] for each in versions] and cloud.alias()[0] == before
    finally:
        cloud.publish(model)
        wait_for(lambda: cloud.invoke(request())["model"] == sha256(model), 20)
    cloud.must("rollback", TO=good)  # it is there, and still good
    cloud.must("deploy", ZIP=builds[0])


# --- killed -----------------------------------------------------------------


# Parts of what a deploy prints, to find the same moment on a fast machine and on a busy one; "" is its start.
STEPS = "stack ", "UPDATE_IN_PROGRESS", "", "code ", "golden rows"


def reached(deploy, step):
    """The deploy, when it has printed that (or ended)."""
    if step:
        next((line for line in deploy.stdout if step in line), None)
    return deploy


def saved(cloud):
    """Wait until the local cloud has saved what it knows now: a kill takes what is newer."""
    now, file = time.time(), cloud.dir / "state/together.json"
    # It is written as soon as it is known what belongs in it.
    wait_for(lambda: file.exists() and file.stat().st_mtime > now + 0.5)


def test_the_cloud_goes_away_in_the_middle(cloud, builds):
    for step in size(STEPS[:1], STEPS):
        live = code_behind(cloud)
        [build] = [each for each in builds if hash_of(each) != live]
        saved(cloud)
        interrupted = reached(cloud.deployer("up", str(build)), step)
        os.kill(json.loads((cloud.dir / "pid").read_text())["pid"], signal.SIGKILL)
        out, _ = interrupted.communicate(timeout=120)
        assert interrupted.returncode == 0 or "error: " in out and "panicked" not in out
        cloud.must("local")
        cloud.must("deploy", ZIP=build)
        assert code_behind(cloud) == hash_of(build)


def test_two_deploys_at_once_one_wins_and_the_other_says_so(cloud, builds):
    for _ in range(size(2, 5)):
        both = [cloud.deployer("up", str(build)) for build in builds]
        said = [each.communicate(timeout=120)[0] for each in both]
        codes = [each.returncode for each in both]
        assert 0 in codes, said
        for code, out in zip(codes, said):
            assert code == 0 or any(
                words in out for words in ("another deploy", "could not move `live`", "could not make a change set")
            ), out
        winners = [hash_of(build) for build, code in zip(builds, codes) if code == 0]
        assert code_behind(cloud) in winners
        assert cloud.invoke(request())[TARGET] == LABEL


def test_the_rule_calls_nothing_until_the_first_version_has_passed(cloud, builds, model, tmp_path):
    script = LIAR.format(python=sys.executable, model=json.loads(model), sha256=sha256(model), lie="p = p[::-1]")
    cloud.must("destroy")
    cloud.must("bucket")
    cloud.publish(model)
    for _ in range(2):  # again is no way around it
        code, out, err = cloud.make("deploy", ZIP=zipped(tmp_path / "liar.zip", bootstrap=script))
        assert code != 0 and "golden row 0" in err and "the rule stays off" in err, out + err
        assert rule(cloud) is True and cloud.alias()[0] == "1"
    code, out, _ = cloud.make("plan", ZIP=builds[0])
    assert code == 2 and "rule      is off until the new version has passed the checks" in out
    assert "the version has passed: the rule is switched on" in cloud.must("deploy", ZIP=builds[0])
    assert rule(cloud) is False and cloud.alias()[0] == "2"
    assert cloud.must("plan", ZIP=builds[0]).endswith("nothing to do\n")


def test_a_deploy_that_is_killed_goes_on_with_the_same_command(cloud, builds, model):
    """At a random moment of each step, of a first deploy or of an update. The last test: it leaves nothing."""
    dice, broken_off, attempts = random.Random(20), 0, size(4, 20)
    for attempt in range(attempts):
        if attempt % 4 == 0:  # from nothing
            cloud.must("destroy")
            killed = cloud.deployer("bucket")
            time.sleep(dice.uniform(0, 0.2))
            killed.kill()
            killed.communicate()
            cloud.must("bucket")
            cloud.publish(model)
        build = builds[attempt % 2]
        killed = reached(cloud.deployer("up", str(build)), STEPS[attempt % len(STEPS)])
        time.sleep(dice.uniform(0, 0.1))
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        broken_off += killed.returncode == -signal.SIGKILL
        again = cloud.deployer("up", str(build))
        out, _ = again.communicate(timeout=120)
        assert again.returncode == 0, out
        assert code_behind(cloud) == hash_of(build)
        assert cloud.invoke(request())[TARGET] == LABEL
    assert broken_off >= attempts / 2
    assert rule(cloud) is False
    sets = cloud.client("cloudformation").list_change_sets(StackName=STACK)["Summaries"]
    print(f"{broken_off} of {attempts} were broken off, {len(sets)} change sets are left in the stack's history")
    cloud.must("destroy")
    left = [cloud.client("lambda").list_functions()["Functions"], cloud.client("sqs").list_queues().get("QueueUrls", [])]
    left += [cloud.client("s3").list_buckets()["Buckets"], cloud.client("iot").list_topic_rules()["rules"]]
    left += [cloud.client("cloudwatch").describe_alarms()["MetricAlarms"]]
    left += [cloud.client("cloudwatch").list_dashboards()["DashboardEntries"]]
    left += [[r for r in cloud.client("iam").list_roles()["Roles"] if r["RoleName"].startswith(f"{STACK}-")]]
    assert left == [[]] * len(left)
