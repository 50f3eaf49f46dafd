"""The local cloud as a user meets it, each change to MiniStack, and whether MiniStack still needs the change.

Every cloud here has ports and a LOCAL_DIR of its own, so this runs beside `make local` and other tests.
"""

import base64
import functools
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

LOCAL = Path(__file__).resolve().parents[1] / "local.py"
sys.path.insert(0, str(LOCAL.parent))
import local  # noqa: E402

REGION = "us-east-1"
CONNECT = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02me"  # MQTT 3.1.1, clean session, client id "me"
CONNACK = b"\x20\x02\x00\x00"
TOO_DEEP, TOO_LONG = b"[" * 100_000, b"9" * 5000  # for Python's JSON
FUNCTIONS = "fn asked again shut busy half".split()

# A function that outlives the loss of its Runtime API, as a hung one would.
BOOTSTRAP = f"""#!{sys.executable} -IS
import http.client, json, os, time
api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
while True:
    try:
        api.request("GET", "/2018-06-01/runtime/invocation/next")
        answer = api.getresponse()
        call, event = answer.getheader("Lambda-Runtime-Aws-Request-Id"), json.loads(answer.read())
        began = time.time()
        time.sleep(event.get("seconds", 0))
        print("ran", began, time.time(), flush=True)  # MiniStack waits 50 ms for one that says nothing
        if event.get("fail"):
            end, body = "error", {{"errorMessage": "as asked", "errorType": "Asked"}}
        else:
            end, body = "response", {{"environment": dict(os.environ), "pid": os.getpid()}}
        api.request("POST", f"/2018-06-01/runtime/invocation/{{call}}/{{end}}", json.dumps(body))
        api.getresponse().read()
    except (OSError, http.client.HTTPException, ValueError):
        api.close()
        time.sleep(0.1)
"""

# In the place of deploy/ministack_changes.py: MiniStack as it is, but for the loopback (no test listens on the network)
# and for shorter pauses between tries. What cannot be seen from outside goes to the log.
UNCHANGED = """
import asyncio, types
from ministack import app
from ministack.core import lambda_runtime
from ministack.services import lambda_svc

listen = asyncio.base_events.BaseEventLoop.create_server

async def on_loopback(self, protocol_factory, host=None, port=None, **options):
    print("wants to listen on", host, flush=True)
    host = None if options.get("sock") else "127.0.0.1"
    return await listen(self, protocol_factory, host, port, **options)

asyncio.base_events.BaseEventLoop.create_server = on_loopback
lambda_svc._LAMBDA_ASYNC_RETRY_BASE_SECONDS = 0.1

idle = types.SimpleNamespace(in_use=False, last_used=0, config={}, _proc=None, _discard_tmpdir=lambda: None)
lambda_runtime._workers["idle"] = [idle]
print("idle functions ended:", lambda_runtime.reap_idle_workers())
lambda_runtime._workers.clear()

drop = lambda_svc._prune_orphan_code_blobs
lambda_svc._prune_orphan_code_blobs = lambda used: print("drops unused code before it saves")
lambda_svc.get_state()
lambda_svc._prune_orphan_code_blobs = drop
"""


def free_ports(count):
    """Below those that Linux gives to outgoing connections: a cloud that was killed finds its ports free again."""
    ports = []
    while len(ports) < count:
        with socket.socket() as each, suppress(OSError):
            port = random.randint(10_000, 32_000)
            each.bind(("127.0.0.1", port))
            ports += [port] * (port not in ports)
    return ports


def wait_for(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return result


def alive(pid):
    """Whether the process runs; a zombie, which nobody has collected yet, does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


class Cloud:
    def __init__(self, directory, **settings):
        self.dir, self.log = directory, directory / "ministack.log"
        self.gateway, self.mqtt = free_ports(2)
        ports = {"GATEWAY_PORT": str(self.gateway), "IOT_MTLS_PORT": str(self.mqtt)}
        self.settings = {"LOCAL_DIR": str(directory), **ports, **settings}
        self.environment = {**os.environ, **self.settings, "SECRET_OF_THE_USER": "x"}

    def popen(self, *command, **changes):
        return subprocess.Popen(
            command, env={**self.environment, **changes}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def run(self, *command, python=sys.executable, **changes):
        """(exit code, stdout, stderr) of `local.py command`; a traceback is never an answer."""
        process = self.popen(python, LOCAL, *command, **changes)
        out, err = process.communicate(timeout=70)
        assert "Traceback" not in out + err, out + err
        return process.returncode, out, err

    def script(self, text):
        """A Python process that says `import local` and then this."""
        prefix = f"import os, sys; sys.path.insert(0, {str(LOCAL.parent)!r}); import local\n"
        return self.popen(sys.executable, "-c", prefix + text)

    def start(self):
        code, out, err = self.run("start")
        assert code == 0, err
        return out

    def running(self):
        return local.running(local.Settings(self.settings))

    def pid(self):
        return self.running()["pid"]

    def kill(self):
        os.kill(self.pid(), signal.SIGKILL)
        wait_for(lambda: not self.running())

    @functools.cache  # one takes 20 to 500 ms
    def client(self, service):
        return boto3.client(
            service, endpoint_url=f"http://127.0.0.1:{self.gateway}", region_name=REGION,
            aws_access_key_id="test", aws_secret_access_key="test", config=Config(retries={"max_attempts": 0}),
        )  # fmt: skip

    def get(self, path, **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{self.gateway}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def create_function(self, name, timeout=30):
        """A function with an alias `live`, which a rule calls with what is published by its name."""
        package, functions = io.BytesIO(), self.client("lambda")
        trust = '{"Version": "2012-10-17", "Statement": []}'
        role = self.client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        with zipfile.ZipFile(package, "w") as archive:
            entry = zipfile.ZipInfo("bootstrap")
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, BOOTSTRAP)
        functions.create_function(
            FunctionName=name, Runtime="provided.al2023", Handler="bootstrap", Role=role,
            Code={"ZipFile": package.getvalue()}, Timeout=timeout, Publish=True,
        )  # fmt: skip
        alias = functions.create_alias(FunctionName=name, Name="live", FunctionVersion="1")["AliasArn"]
        self.create_rule(name, "*", {"lambda": {"functionArn": alias}})

    def create_rule(self, topic, select, action):
        rule = {"sql": f"SELECT {select} FROM '{topic}'", "actions": [action]}
        self.client("iot").create_topic_rule(ruleName=topic, topicRulePayload=rule)

    def invoke(self, name="fn", **event):
        answer = self.client("lambda").invoke(FunctionName=name, Qualifier="live", Payload=json.dumps(event))
        return json.loads(answer["Payload"].read())

    def seconds(self, calls):
        """How long each of some calls in a row takes."""
        functions = self.client("lambda")
        for _ in range(calls):
            began = time.monotonic()
            functions.invoke(FunctionName="fn", Qualifier="live", Payload="{}")
            yield time.monotonic() - began

    def call_later(self, name, qualifier="$LATEST", **event):
        call = {"FunctionName": name, "Qualifier": qualifier, "Payload": json.dumps(event)}
        self.client("lambda").invoke(InvocationType="Event", **call)

    def calls(self, name):
        """When the function's calls that are over began and ended."""
        logs = self.client("logs")
        try:
            events = logs.filter_log_events(logGroupName=f"/aws/lambda/{name}")["events"]
        except logs.exceptions.ResourceNotFoundException:
            return []
        lines = [event["message"].split() for event in events]
        return [tuple(map(float, line[1:])) for line in lines if line[:1] == ["ran"]]

    def at_once(self, name):
        calls = self.calls(name)
        return max(sum(began <= start < ended for began, ended in calls) for start, _ in calls)

    def spawned(self, name):
        return self.log.read_text().count(f"environment spawned for {name} ")

    def publish(self, name, **event):
        self.client("iot-data").publish(topic=name, qos=1, payload=json.dumps(event))

    def rule_reads(self, payload):
        """Whether a rule gets the message, and all of it."""
        try:
            self.client("iot-data").publish(topic="read", qos=1, payload=payload)
        except ClientError:
            return False
        [message] = wait_for(lambda: self.received("read"))
        return base64.b64decode(json.loads(message["Body"])["payload"]) == payload

    def received(self, queue):
        url = self.client("sqs").get_queue_url(QueueName=queue)["QueueUrl"]
        return self.client("sqs").receive_message(QueueUrl=url).get("Messages")

    def on_failure(self, name, retries, qualifier="$LATEST"):
        """A failed call is tried again, and then goes to a queue of the function's name."""
        self.client("sqs").create_queue(QueueName=name)
        self.client("lambda").put_function_event_invoke_config(
            FunctionName=name, Qualifier=qualifier, MaximumRetryAttempts=retries,
            DestinationConfig={"OnFailure": {"Destination": f"arn:aws:sqs:{REGION}:000000000000:{name}"}},
        )  # fmt: skip

    def limit(self, name, concurrency):
        self.client("lambda").put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=concurrency)

    def counted(self, name, metric):
        now = datetime.now(timezone.utc)
        points = self.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Lambda", MetricName=metric, Dimensions=[{"Name": "FunctionName", "Value": name}],
            StartTime=now - timedelta(minutes=5), EndTime=now + timedelta(minutes=1), Period=600, Statistics=["Sum"],
        )["Datapoints"]  # fmt: skip
        return sum(point["Sum"] for point in points)

    def looks(self, name, resource="*", **condition):
        """Whether a role may look at itself, by a policy with this resource and condition."""
        allowed = {"Effect": "Allow", "Action": "iam:GetRole", "Resource": resource, "Condition": condition}
        trust = {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": "*"}}
        policy, trust = (json.dumps({"Version": "2012-10-17", "Statement": [each]}) for each in (allowed, trust))
        iam, tags = self.client("iam"), [{"Key": "of", "Value": name}]
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust, Tags=tags)["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="look", PolicyDocument=policy)
        made = self.client("sts").assume_role(RoleArn=role, RoleSessionName="session")["Credentials"]
        keys = {"aws_access_key_id": made["AccessKeyId"], "aws_secret_access_key": made["SecretAccessKey"]}
        session = boto3.Session(**keys, aws_session_token=made["SessionToken"], region_name=REGION)
        try:
            return session.client("iam", endpoint_url=f"http://127.0.0.1:{self.gateway}").get_role(RoleName=name)
        except ClientError as error:
            assert error.response["Error"]["Code"] == "AccessDenied"
            return False

    def boundary_of_a_stacks_role(self):
        """What CloudFormation makes of it."""
        deny = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Action": "*", "Resource": "*"}]}
        iam, formation = self.client("iam"), self.client("cloudformation")
        arn = iam.create_policy(PolicyName="bound", PolicyDocument=json.dumps(deny))["Policy"]["Arn"]
        role = {"RoleName": "bound", "AssumeRolePolicyDocument": deny, "PermissionsBoundary": arn}
        template = json.dumps({"Resources": {"Role": {"Type": "AWS::IAM::Role", "Properties": role}}})
        formation.create_stack(StackName="bound", TemplateBody=template, Capabilities=["CAPABILITY_NAMED_IAM"])
        formation.get_waiter("stack_create_complete").wait(StackName="bound", WaiterConfig={"Delay": 1})
        made = iam.get_role(RoleName="bound")["Role"].get("PermissionsBoundary", {})
        return made.get("PermissionsBoundaryArn") == arn

    def states(self):
        """Of the function and the stack that were under way when the cloud was killed."""
        [stack] = self.client("cloudformation").describe_stacks(StackName="half")["Stacks"]
        function = self.client("lambda").get_function_configuration(FunctionName="half")
        return function["LastUpdateStatus"], stack["StackStatus"]

    def has_saved(self, word):
        return any(word in file.read_bytes() for file in (self.dir / "state").glob("**/*.*") if file.is_file())

    def mqtt_answer(self, certificate=None):
        """What the broker says to CONNECT, checked as a strict client would: b"" when it closes the connection."""
        context = ssl.create_default_context(cadata=self.get("/_ministack/iot/ca.pem").decode())
        if certificate:
            context.load_cert_chain(*certificate)
        try:
            with socket.create_connection(("127.0.0.1", self.mqtt), timeout=10) as plain:
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                    secure.sendall(CONNECT)
                    return secure.recv(4)
        except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
            return b""

    def websocket_answer(self):
        """The status that an unsigned upgrade to MQTT gets."""
        host = self.client("iot").describe_endpoint(endpointType="iot:Data-ATS")["endpointAddress"]
        upgrade = {
            "Host": host, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "mqtt",
        }  # fmt: skip
        raw = "GET /mqtt HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in upgrade.items()) + "\r\n"
        with socket.create_connection(("127.0.0.1", self.gateway), timeout=10) as connection:
            connection.sendall(raw.encode())
            return int(connection.recv(4096).split()[1])


@pytest.fixture
def stopped(tmp_path):
    cloud = Cloud(tmp_path / "local")
    yield cloud
    if cloud.running():
        cloud.kill()


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """One for the tests that start and stop it."""
    cloud = Cloud(tmp_path_factory.mktemp("mine") / "local")
    yield cloud
    if cloud.running():
        cloud.kill()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """One that was filled and then killed, while a function and a stack were in the middle of an update."""
    cloud = Cloud(
        tmp_path_factory.mktemp("killed") / "local", LAMBDA_WARM_TTL_SECONDS="1", LAMBDA_ACCOUNT_CONCURRENCY="8"
    )
    cloud.start()
    storage = cloud.client("s3")
    storage.create_bucket(Bucket="kept")
    storage.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    storage.put_object(Bucket="kept", Key="models/a.json", Body=b"{}")
    cloud.authority = cloud.get("/_ministack/iot/ca.pem")
    for name in FUNCTIONS:
        cloud.create_function(name)
    cloud.on_failure("asked", 1)
    cloud.on_failure("again", 0, "live")
    cloud.on_failure("shut", 0)
    cloud.on_failure("shut", 0, "live")
    cloud.limit("shut", 0)
    queue = cloud.client("sqs").create_queue(QueueName="read")["QueueUrl"]
    to_queue = {"sqs": {"queueUrl": queue, "roleArn": "arn:aws:iam::000000000000:role/fn"}}
    cloud.create_rule("read", "encode(*, 'base64') AS payload", to_queue)
    cloud.function = cloud.invoke()["pid"]
    template = json.dumps({"Resources": {"Queue": {"Type": "AWS::SQS::Queue"}}})
    cloud.client("cloudformation").create_stack(StackName="half", TemplateBody=template)
    cloud.client("iam").create_user(UserName="kept")
    begun = {  # what a kill in the middle of an update leaves; the moment is too short to be met by chance
        "lambda": (r'("LastUpdateStatus":\s*)"Successful"', r'\1"InProgress"', 2 * len(FUNCTIONS)),  # and versions
        "cloudformation": (r'("StackStatus":\s*)"CREATE_COMPLETE"', r'\1"UPDATE_IN_PROGRESS"', 1),
    }
    last = {"iam": "kept", "s3": "kept", "iot": "'read'", "sqs": "'read'"}.items()

    file = cloud.dir / "state/together.json"

    def saved(service):
        return json.dumps(json.loads(file.read_text()).get(service)) if file.exists() else ""

    wait_for(lambda: all(len(re.findall(old, saved(name))) == times for name, (old, _, times) in begun.items()), 10)
    wait_for(lambda: all(word in saved(service) for service, word in last), 10)
    cloud.kill()
    begun = {service: json.loads(re.sub(old, new, saved(service))) for service, (old, new, _) in begun.items()}
    file.write_text(json.dumps(json.loads(file.read_text()) | begun))
    (cloud.dir / "state/s3/000000000000/left/models").mkdir(parents=True)  # as a deleted stack leaves it
    wait_for(lambda: not alive(cloud.function), 5)
    return cloud


@pytest.fixture(scope="module")
def unchanged(killed, tmp_path_factory):
    """MiniStack without our changes, but with the state of the one that was killed."""
    directory = tmp_path_factory.mktemp("unchanged")
    cloud = Cloud(directory / "local", LAMBDA_ACCOUNT_CONCURRENCY="8")
    shutil.copytree(killed.dir / "state", cloud.dir / "state")
    for service, state in json.loads((cloud.dir / "state/together.json").read_text()).items():
        (cloud.dir / "state" / f"{service}.json").write_text(json.dumps(state))
    (directory / "ministack_changes.py").write_text(UNCHANGED)
    with cloud.log.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", f"import os, sys; sys.path[:0] = [{str(directory)!r}, {str(LOCAL.parent)!r}]; "
             "import local; local.forget_buckets = id; local.run(local.Settings(os.environ))"],
            env=cloud.environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        wait_for(lambda: local.readiness(cloud.gateway) or not alive(process.pid))
        assert alive(process.pid), cloud.log.read_text()
        cloud.client("iot").create_thing(thingName="made-before")
        cloud.publish("asked", fail=True)
        cloud.call_later("again", qualifier="live", fail=True)
        cloud.call_later("shut")
        for _ in range(4):
            cloud.call_later("busy", seconds=2)
        yield cloud
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # a zombie counts: it is collected in the next line only
        process.wait()


@pytest.fixture(scope="module")
def shared(killed, unchanged):
    """The one that was killed, started again for all the tests that leave it running."""
    killed.start()
    yield killed
    killed.kill()


# --- start and stop ---------------------------------------------------------


def test_of_two_starts_at_once_the_second_finds_it_running_and_stop_may_be_repeated(mine):
    assert mine.run("stop")[:2] == (0, "local cloud: not running\n")
    both = [mine.popen(sys.executable, LOCAL, "start") for _ in range(2)]
    said = sorted((process.communicate(timeout=70) for process in both), key=lambda pair: "up in" in pair[0])
    assert [process.returncode for process in both] == [0, 0], said
    (late, _), (first, _) = said
    assert "already running" in late and f"pid {mine.pid()}" in late
    for each in (f"http://127.0.0.1:{mine.gateway}", f"127.0.0.1:{mine.mqtt}", str(mine.log), "up in"):
        assert each in first
    assert first.count("\n") == late.count("\n") == 1
    assert mine.run("start", "--quiet") == (0, "", "")
    pid = mine.pid()
    assert mine.run("stop") == (0, "local cloud: stopped\n", "")
    wait_for(lambda: not alive(pid), 5)


def test_a_stop_loses_nothing_nor_does_a_kill_while_it_loads(mine):
    mine.start()
    mine.client("iot").create_thing(thingName="kept")
    mine.create_function("ended")
    function = mine.invoke("ended")["pid"]
    assert mine.run("stop")[0] == 0
    wait_for(lambda: not alive(function), 5)
    loading = mine.script(
        "import time\nsettings = local.Settings(os.environ)\nos.environ.update(settings.environment())\n"
        "from ministack import app\n"
        "sleep, time.sleep = time.sleep, lambda seconds: sleep(seconds / 10)\n"  # else it saves every 2 s
        "app._load_persisted_state = lambda: (print('loading', flush=True), sleep(60))\n"
        "local.run(settings)"
    )
    assert any("loading" in line for line in loading.stdout)
    time.sleep(0.6)
    loading.kill()
    loading.communicate()
    mine.start()
    assert mine.client("iot").describe_thing(thingName="kept")


def test_stop_kills_in_the_end(mine):
    mine.start()
    mine.create_function("slow", timeout=60)
    threading.Thread(target=lambda: pytest.raises(Exception, mine.invoke, "slow", seconds=60), daemon=True).start()
    wait_for(lambda: mine.spawned("slow"))
    pid = mine.pid()
    impatient = mine.script("local.STOP_SECONDS = local.SAY_SECONDS = 1; local.stop(local.Settings(os.environ))")
    out, err = impatient.communicate(timeout=20)
    assert "killing it" in out, err
    wait_for(lambda: not alive(pid), 5)


def test_another_port_is_refused_while_it_runs(shared):
    code, _, err = shared.run("start", GATEWAY_PORT=str(free_ports(1)[0]))
    assert code == 1 and "already runs on other ports" in err and f":{shared.gateway}" in err


@pytest.mark.parametrize("name", ["GATEWAY_PORT", "IOT_MTLS_PORT"])
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_taken_port_is_named_with_the_way_out(stopped, name, address):
    with socket.socket() as other:
        other.bind((address, int(stopped.settings[name])))
        other.listen()
        code, _, err = stopped.run("start")
    assert code == 1
    assert f"Port {stopped.settings[name]} ({name})" in err and "make local GATEWAY_PORT=" in err
    assert err.count("\n") == 1


def test_start_waits_for_the_ports_of_one_that_is_being_taken_down(stopped):
    holds = f"""
import json, os, socket, time
with socket.create_server(("127.0.0.1", {stopped.gateway})), open("pid", "w") as file:
    print(json.dumps({{"pid": os.getpid()}}), file=file, flush=True)
    time.sleep(1.5)"""
    stopped.dir.mkdir()
    last = subprocess.Popen([sys.executable, "-c", holds], cwd=stopped.dir)
    wait_for(lambda: (stopped.dir / "pid").exists() and (stopped.dir / "pid").read_text())
    threading.Thread(target=last.wait).start()  # it is collected at once, as by its shell
    assert "up in" in stopped.start()


def test_a_port_that_becomes_free_while_start_looks_is_free(stopped):
    # The last one goes between the look at the port and the look at the process.
    goes = f"import socket; last = socket.create_server(('127.0.0.1', {stopped.gateway}))\n"
    goes += "local.ending = lambda _: last.close()\nlocal.start(local.Settings(os.environ))"
    out, err = stopped.script(goes).communicate(timeout=70)
    assert "up in" in out, err


@pytest.mark.parametrize("name", local.LIMITS)
@pytest.mark.parametrize("value", ["0", "65536000", "-1", "http", "80.5", "٣"])
def test_what_is_no_number_in_its_limits_is_refused(name, value):
    with pytest.raises(SystemExit, match=f"{name}='.+must be a whole number from 1 to {local.LIMITS[name]}"):
        local.Settings({name: value})


def test_the_highest_port_is_65535():
    assert local.Settings({"GATEWAY_PORT": "65535"}).gateway == 65535
    with pytest.raises(SystemExit, match="GATEWAY_PORT='65536'"):
        local.Settings({"GATEWAY_PORT": "65536"})


def test_a_command_that_is_none_gets_the_usage(stopped):
    for command in ((), ("begin",), ("stop", "--quiet")):
        code, _, err = stopped.run(*command)
        assert code == 1 and "local.py start [--quiet]" in err and "LAMBDA_WARM_TTL_SECONDS=75" in err


def test_a_process_that_took_over_a_stale_pid_is_left_alone(stopped):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(LOCAL), "run"])
    try:
        stopped.dir.mkdir()
        (stopped.dir / "pid").write_text(json.dumps({"pid": other.pid, "GATEWAY_PORT": 1, "IOT_MTLS_PORT": 2}))
        assert stopped.run("stop")[:2] == (0, "local cloud: not running\n")
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_ctrl_c_while_it_starts_leaves_nothing_running(stopped):
    for _ in range(10):  # a start that is over before the signal comes says nothing
        starting = stopped.popen(sys.executable, LOCAL, "start")
        pid = wait_for(stopped.running)["pid"]
        starting.send_signal(signal.SIGINT)
        _, err = starting.communicate(timeout=30)
        if starting.returncode:
            break
        stopped.run("stop")
    assert starting.returncode == 130 and "Traceback" not in err
    wait_for(lambda: not alive(pid), 5)


def test_what_dies_at_start_shows_the_end_of_its_log(stopped):
    bare = os.path.realpath(sys.executable)
    if subprocess.run([bare, "-c", "import ministack"], capture_output=True).returncode == 0:
        pytest.skip("needs a Python that has no ministack")
    code, _, err = stopped.run("start", python=bare)
    assert code == 1
    assert "No module named 'ministack'" in err and "make setup" in err and str(stopped.log) in err
    assert not stopped.running()


def test_a_ministack_that_the_changes_do_not_fit_is_named_and_ends_the_start(stopped):
    said, err = stopped.script(
        "settings = local.Settings(os.environ)\nos.environ.update(settings.environment())\n"
        "from ministack.services import iot\niot._rule_message = lambda: None\n"
        "try: import ministack_changes\nexcept ImportError as error: print(error)\n"
        "del iot._rule_message\nlocal.run(settings)"
    ).communicate(timeout=30)
    assert "ministack.services.iot._rule_message takes (), not (payload)" in said
    assert "ministack.services.iot" in err and "'_rule_message'" in err and "make setup" in err
    assert "Traceback" not in err


# --- what it keeps ----------------------------------------------------------


def test_a_kill_loses_nothing_that_is_some_seconds_old(shared):
    storage = shared.client("s3")
    assert storage.get_object(Bucket="kept", Key="models/a.json")["Body"].read() == b"{}"
    assert storage.get_bucket_versioning(Bucket="kept")["Status"] == "Enabled"
    assert shared.client("iam").get_user(UserName="kept")
    assert shared.get("/_ministack/iot/ca.pem") == shared.authority
    assert shared.invoke()["pid"] != shared.function
    assert (shared.dir / "state").stat().st_mode & 0o777 == 0o700


def test_a_bucket_that_nobody_has_does_not_come_back(shared):
    with pytest.raises(ClientError, match="404"):
        shared.client("s3").head_bucket(Bucket="left")
    assert not (shared.dir / "state/s3/000000000000/left").exists()


def test_what_is_saved_is_of_one_moment_or_not_saved(tmp_path):
    """Two services that change together, while one after the other is asked for its state."""
    cloud = Cloud(tmp_path / "local")
    said, err = cloud.script(
        "settings = local.Settings(os.environ)\nos.makedirs(settings.state)\nos.environ.update(settings.environment())\n"
        "import json, threading, ministack_changes as changes\n"
        "one, two = [0], [0]\n"
        "def change():\n"
        "    while True:\n"
        "        one[0] += 1\n"
        "        two[0] += 1\n"
        "def state_of(service):\n"
        "    def get():\n"
        "        for _ in range(500_000): pass\n"
        "        return {'n': service[0]}\n"
        "    return get\n"
        "threading.Thread(target=change, daemon=True).start()\n"
        "def broken(): raise RuntimeError('changed while it was read')\n"
        "for services in [{'one': state_of(one), 'two': state_of(two)}] * 9 + [{'one': state_of(one), 'two': broken}]:\n"
        "    changes.app.save_all(services)\n"
        "    saved = json.load(open(os.path.join(settings.state, 'together.json')))\n"
        "    n, m = (saved[name]['payload']['n'] for name in ('one', 'two'))\n"
        "    print('together' if n - m in (0, 1) else 'apart', flush=True)\n"
    ).communicate(timeout=60)
    assert said.count("together\n") == 10 and "apart" not in said, said + err


def test_what_a_kill_broke_off_can_be_updated_again(shared):
    wait_for(lambda: shared.states() == ("Successful", "UPDATE_ROLLBACK_COMPLETE"), 5)


def test_functions_see_nothing_of_the_users_own(shared):
    environment = shared.invoke()["environment"]
    assert "SECRET_OF_THE_USER" not in environment
    assert environment["HOME"] == environment["TMPDIR"] == str(shared.dir / "tmp")
    assert environment["AWS_ENDPOINT_URL"] == f"http://127.0.0.1:{shared.gateway}"
    assert environment["AWS_ACCESS_KEY_ID"].startswith("ASIA")  # the role's, not root's


# --- who may come in --------------------------------------------------------


def listening_addresses(pid):
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                address, port = fields[1].split(":")
                yield address, int(port, 16)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_it_listens_on_loopback_only(shared):
    listening = dict(map(reversed, listening_addresses(shared.pid())))
    assert {shared.gateway, shared.mqtt} <= listening.keys()
    assert set(listening.values()) == {"0100007F"}


def test_mqtt_takes_a_registered_certificate_and_nothing_less(shared, tmp_path):
    assert shared.mqtt_answer() == b""
    iot = shared.client("iot")
    made = iot.create_keys_and_certificate(setAsActive=True)
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    files[0].write_text(made["certificatePem"])
    files[1].write_text(made["keyPair"]["PrivateKey"])
    assert shared.mqtt_answer(files) == b""  # it has no policy yet
    allow = {"Effect": "Allow", "Action": "iot:Connect", "Resource": f"arn:aws:iot:{REGION}:000000000000:client/me"}
    iot.create_policy(policyName="me", policyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allow]}))
    iot.attach_policy(policyName="me", target=made["certificateArn"])
    assert shared.mqtt_answer(files) == CONNACK


def test_an_unsigned_websocket_is_refused(shared):
    assert shared.websocket_answer() == 403


def test_web_pages_of_other_sites_are_refused(shared):
    for header in ("Origin: https://a.com", "Origin: null", "Host: a.com", "Sec-Fetch-Site: cross-site"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            shared.get("/_ministack/health", **dict([header.split(": ")]))
    assert shared.get("/_ministack/health", Origin="http://localhost:8888")


# --- rights as on AWS -------------------------------------------------------

OWN = "arn:aws:iam::000000000000:role/${aws:PrincipalTag/of}"


def test_a_policy_goes_by_the_callers_tags_and_role(shared):
    assert shared.looks("tagged", OWN) and not shared.looks("strange", "arn:aws:iam::000000000000:role/${aws:PrincipalTag/no}")
    assert shared.looks("named", ArnLike={"aws:PrincipalArn": OWN})


def test_a_stacks_role_has_its_boundary(shared):
    assert shared.boundary_of_a_stacks_role()


# --- rules and functions as on AWS ------------------------------------------


def test_a_message_that_python_cannot_read_reaches_the_rule(shared):
    assert shared.rule_reads(TOO_DEEP) and shared.rule_reads(TOO_LONG)


def test_a_warm_call_does_not_wait_for_an_ack(shared):
    assert any(seconds < 0.035 for seconds in shared.seconds(calls=300))  # one is enough: the machine may be busy


def test_an_idle_function_ends(shared):
    first = shared.invoke()["pid"]
    assert shared.invoke()["pid"] == first
    time.sleep(1.1)
    assert shared.invoke()["pid"] != first
    wait_for(lambda: not alive(first), 5)


def test_a_rule_retries_and_then_uses_the_aliass_destination(shared):
    shared.on_failure("again", 1, "live")
    shared.publish("again", fail=True)
    [lost] = wait_for(lambda: shared.received("again"))
    assert json.loads(lost["Body"])["requestPayload"] == {"fail": True}
    assert shared.counted("again", "Errors") == 2  # the first try and one more


def test_reserved_concurrency_holds_for_an_alias_and_a_rule_waits_for_its_turn(shared):
    shared.publish("shut")
    wait_for(lambda: shared.counted("shut", "Throttles"))
    functions = shared.client("lambda")
    with pytest.raises(functions.exceptions.TooManyRequestsException):
        shared.invoke("shut")
    shared.limit("shut", 1)
    wait_for(lambda: len(shared.calls("shut")) == 1)


def test_queued_calls_get_a_quarter_of_the_calls_at_once(shared):
    for _ in range(6):
        shared.publish("busy", seconds=0.2)
    wait_for(lambda: len(shared.calls("busy")) == 6)  # all had their turn
    assert shared.at_once("busy") <= 2


# --- what MiniStack itself does ---------------------------------------------

FAULTS = {
    "listen_on_loopback_only": lambda cloud: "wants to listen on 0.0.0.0" in cloud.log.read_text(),
    "require_device_certificates": lambda cloud: cloud.mqtt_answer() == CONNACK,
    "require_signed_websockets": lambda cloud: cloud.websocket_answer() == 101,
    "refuse_pages_from_elsewhere": lambda cloud: cloud.get("/_ministack/health", Origin="https://example.com"),
    "name_the_role_of_a_session": lambda cloud: not cloud.looks(
        "session", ArnLike={"aws:PrincipalArn": "arn:aws:iam::000000000000:role/session"}
    ),
    "fill_in_policy_variables": lambda cloud: not cloud.looks("variable", OWN),
    "keep_the_boundary_of_roles": lambda cloud: not cloud.boundary_of_a_stacks_role(),
    "read_any_message": lambda cloud: not (cloud.rule_reads(TOO_DEEP) or cloud.rule_reads(TOO_LONG)),
    "answer_functions_at_once": lambda cloud: min(list(cloud.seconds(calls=12))[4:]) > 0.038,
    "end_idle_functions": lambda cloud: "idle functions ended: 0" in cloud.log.read_text(),
    "reserve_concurrency_for_aliases": lambda cloud: "pid" in cloud.invoke("shut"),
    "retry_calls_from_rules": lambda cloud: wait_for(lambda: cloud.calls("again")[2:], 20) and not cloud.calls("asked")[1:],
    "count_calls_from_rules": lambda cloud: cloud.calls("asked") and not cloud.counted("asked", "Errors"),
    "use_retry_settings_of_aliases": lambda cloud: wait_for(lambda: cloud.calls("again")[2:], 10),
    "let_throttled_calls_wait": lambda cloud: wait_for(lambda: cloud.received("shut"), 10),
    "run_few_queued_calls_at_once": lambda cloud: wait_for(lambda: cloud.spawned("busy") > 2, 10),
    "drop_unused_code_at_the_start": lambda cloud: "drops unused code before it saves" in cloud.log.read_text(),
    "settle_what_was_under_way": lambda cloud: cloud.states() == ("InProgress", "UPDATE_IN_PROGRESS"),
    "save_while_running": lambda cloud: not cloud.has_saved(b"made-before"),
    "forget_buckets": lambda cloud: cloud.client("s3").head_bucket(Bucket="left"),
}


@pytest.mark.parametrize("change", FAULTS)
def test_ministack_still_needs(unchanged, change):
    try:
        needed = FAULTS[change](unchanged)
    except (AssertionError, ClientError, urllib.error.HTTPError):
        needed = False  # it waited for the fault in vain, or was refused
    if not needed:
        pytest.fail(f"ministack {version('ministack')} mends this: delete {change} in deploy/")
