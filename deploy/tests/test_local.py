"""The local cloud as a user meets it: start, stop, and what it promises in between.

Every test has ports and a LOCAL_DIR of its own, so it may run beside `make local`.
"""

import io
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import types
import urllib.error
import urllib.request
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

LOCAL = Path(__file__).resolve().parents[1] / "local.py"
sys.path.insert(0, str(LOCAL.parent))
import local  # noqa: E402

REGION = "us-east-1"
CONNECT = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02me"  # MQTT 3.1.1, clean session, client id "me"
CONNACK = b"\x20\x02\x00\x00"

# A function that outlives the loss of its Runtime API, as a hung one would.
BOOTSTRAP = f"""#!{sys.executable}
import http.client, json, os, time
while True:
    try:
        api = http.client.HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
        api.request("GET", "/2018-06-01/runtime/invocation/next")
        answer = api.getresponse()
        call, event = answer.getheader("Lambda-Runtime-Aws-Request-Id"), json.loads(answer.read())
        time.sleep(event.get("seconds", 0))
        if event.get("fail"):
            end, body = "error", {{"errorMessage": "as asked", "errorType": "Asked"}}
        else:
            end, body = "response", {{"environment": dict(os.environ), "pid": os.getpid()}}
        api.request("POST", f"/2018-06-01/runtime/invocation/{{call}}/{{end}}", json.dumps(body))
        api.getresponse().read()
    except (OSError, http.client.HTTPException, ValueError):
        time.sleep(0.1)
"""


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
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
    def __init__(self, directory):
        self.dir = directory
        self.gateway, self.mqtt = free_ports(2)
        self.settings = {
            "LOCAL_DIR": str(directory),
            "GATEWAY_PORT": str(self.gateway),
            "IOT_MTLS_PORT": str(self.mqtt),
        }
        self.environment = {**os.environ, **self.settings, "SECRET_OF_THE_USER": "x"}

    def popen(self, command, **changes):
        return subprocess.Popen(
            [changes.pop("python", sys.executable), LOCAL, command],
            env={**self.environment, **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, command, **changes):
        """(exit code, stdout, stderr) of `local.py command`; a traceback is never an answer."""
        process = self.popen(command, **changes)
        out, err = process.communicate(timeout=70)
        assert "Traceback" not in out + err, out + err
        return process.returncode, out, err

    def start(self, **changes):
        code, out, err = self.run("start", **changes)
        assert code == 0, err
        return out

    def pid(self):
        return json.loads((self.dir / "pid").read_text())["pid"]

    def kill(self):
        os.kill(self.pid(), signal.SIGKILL)
        wait_for(lambda: self.run("status")[0] == 3)

    def client(self, service, key="test", secret="test"):
        return boto3.client(
            service,
            endpoint_url=f"http://127.0.0.1:{self.gateway}",
            region_name=REGION,
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            config=Config(retries={"max_attempts": 0}),
        )

    def get(self, path, **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{self.gateway}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read()

    def create_function(self, name="fn", timeout=30):
        """A function with an alias `live`; its ARN."""
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
        return functions.create_alias(FunctionName=name, Name="live", FunctionVersion="1")["AliasArn"]

    def invoke(self, **event):
        answer = self.client("lambda").invoke(FunctionName="fn", Qualifier="live", Payload=json.dumps(event))
        return json.loads(answer["Payload"].read())


@pytest.fixture
def stopped(tmp_path):
    cloud = Cloud(tmp_path / "local")
    yield cloud
    if cloud.run("status")[0] != 3:
        cloud.kill()


@pytest.fixture
def cloud(stopped):
    stopped.start()
    return stopped


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One that runs for all the tests that leave it running."""
    cloud = Cloud(tmp_path_factory.mktemp("shared") / "local")
    cloud.start()
    yield cloud
    cloud.kill()


# --- start, stop, status ----------------------------------------------------


def test_start_status_and_stop_may_each_be_repeated(stopped):
    assert stopped.run("status") == (3, "local cloud: not running\n", "")
    said = stopped.start()
    assert f"http://127.0.0.1:{stopped.gateway}" in said and f"127.0.0.1:{stopped.mqtt}" in said
    assert str(stopped.dir / "ministack.log") in said
    assert said.count("\n") == 1
    pid = stopped.pid()
    assert stopped.run("status")[0] == 0
    again = stopped.start()
    assert "already running" in again and again.count("\n") == 1
    assert stopped.pid() == pid and alive(pid)
    assert stopped.run("stop")[0] == 0
    wait_for(lambda: not alive(pid), 5)
    assert stopped.run("status")[0] == 3
    assert stopped.run("stop") == (0, "local cloud: not running\n", "")


def test_of_two_starts_at_once_the_second_finds_it_running(stopped):
    both = [stopped.popen("start") for _ in range(2)]
    said = [process.communicate(timeout=70) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum("already running" in out for out, _ in said) == 1
    assert sum("up in" in out for out, _ in said) == 1


def test_another_port_is_refused_while_it_runs(cloud):
    code, _, err = cloud.run("start", GATEWAY_PORT=str(free_ports(1)[0]))
    assert code == 1 and "already runs on other ports" in err and f":{cloud.gateway}" in err


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


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http", "80.5", "٣"])
def test_what_is_no_port_is_refused(stopped, port):
    for name in ("GATEWAY_PORT", "IOT_MTLS_PORT"):
        code, _, err = stopped.run("start", **{name: port})
        assert code == 1 and err.startswith(f"{name}=") and "65535" in err


def test_a_process_that_took_over_a_stale_pid_is_left_alone(stopped):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", str(LOCAL), "run"])
    try:
        stopped.dir.mkdir()
        (stopped.dir / "pid").write_text(json.dumps({"pid": other.pid, "GATEWAY_PORT": 1, "IOT_MTLS_PORT": 2}))
        assert stopped.run("status")[0] == 3
        assert stopped.run("stop")[0] == 0
        stopped.start()
        assert stopped.run("stop")[0] == 0
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_ctrl_c_while_it_starts_leaves_nothing_running(stopped):
    starting = stopped.popen("start")
    wait_for(lambda: (stopped.dir / "pid").exists() and (stopped.dir / "pid").read_text())
    starting.send_signal(signal.SIGINT)
    _, err = starting.communicate(timeout=30)
    assert starting.returncode == 130 and "Traceback" not in err
    wait_for(lambda: not alive(stopped.pid()), 5)


def test_what_dies_at_start_shows_the_end_of_its_log(stopped):
    bare = os.path.realpath(sys.executable)
    if subprocess.run([bare, "-c", "import ministack"], capture_output=True).returncode == 0:
        pytest.skip("needs a Python that has no ministack")
    code, _, err = stopped.run("start", python=bare)
    assert code == 1
    assert "No module named 'ministack'" in err and "make setup" in err
    assert str(stopped.dir / "ministack.log") in err
    assert stopped.run("status")[0] == 3


def test_stop_kills_in_the_end(cloud):
    cloud.create_function(timeout=60)
    threading.Thread(target=lambda: pytest.raises(Exception, cloud.invoke, seconds=60), daemon=True).start()
    wait_for(lambda: "spawned" in (cloud.dir / "ministack.log").read_text())
    pid = cloud.pid()
    impatient = f"import sys, os; sys.path.insert(0, {str(LOCAL.parent)!r}); import local; local.STOP_SECONDS = 1; "
    subprocess.run(
        [sys.executable, "-c", impatient + "local.stop(local.Settings(os.environ))"],
        env=cloud.environment, check=True, timeout=20,
    )  # fmt: skip
    wait_for(lambda: not alive(pid), 5)


# --- what it keeps, and what it ends ----------------------------------------


def test_a_kill_loses_nothing_that_is_some_seconds_old(cloud):
    storage, roles = cloud.client("s3"), cloud.client("iam")
    storage.create_bucket(Bucket="kept")
    storage.put_bucket_versioning(Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
    storage.put_object(Bucket="kept", Key="models/a.json", Body=b"{}")
    roles.create_user(UserName="kept")
    authority = cloud.get("/_ministack/iot/ca.pem")
    cloud.create_function()
    time.sleep(5)
    cloud.kill()
    cloud.start()
    assert storage.get_object(Bucket="kept", Key="models/a.json")["Body"].read() == b"{}"
    assert storage.get_bucket_versioning(Bucket="kept")["Status"] == "Enabled"
    assert roles.get_user(UserName="kept")
    assert cloud.get("/_ministack/iot/ca.pem") == authority
    assert cloud.invoke()["pid"]
    assert (cloud.dir / "state").stat().st_mode & 0o777 == 0o700


def test_a_function_killed_in_an_update_can_be_updated_again(cloud):
    cloud.create_function()
    functions, saved = cloud.client("lambda"), cloud.dir / "state" / "lambda.json"

    whole = re.compile(r'("LastUpdateStatus":\s*)"Successful"')
    wait_for(lambda: saved.exists() and whole.search(saved.read_text()))
    cloud.kill()
    # What a kill in the middle of an update leaves behind. The moment is too short to be met by chance.
    saved.write_text(whole.sub(r'\1"InProgress"', saved.read_text()))
    cloud.start()

    def settled():
        return functions.get_function_configuration(FunctionName="fn")["LastUpdateStatus"] == "Successful"

    wait_for(settled, 5)


def test_a_kill_while_it_still_loads_loses_nothing(cloud):
    cloud.client("iot").create_thing(thingName="kept")
    assert cloud.run("stop")[0] == 0
    slow = (
        f"import sys, os, time; sys.path.insert(0, {str(LOCAL.parent)!r})\n"
        "import local\nsettings = local.Settings(os.environ)\nos.environ.update(settings.environment())\n"
        "from ministack import app\n"
        "app._load_persisted_state = lambda: (print('loading', flush=True), time.sleep(60))\n"
        "local.run(settings)"
    )
    said = cloud.dir / "slow.log"
    with said.open("w") as log:
        loading = subprocess.Popen([sys.executable, "-c", slow], env=cloud.environment, stdout=log, stderr=log)
    wait_for(lambda: "loading" in said.read_text())
    time.sleep(3)
    loading.kill()
    loading.wait()
    cloud.start()
    assert cloud.client("iot").describe_thing(thingName="kept")


def test_a_stop_loses_nothing_at_all(cloud):
    cloud.client("s3").create_bucket(Bucket="kept")
    assert cloud.run("stop")[0] == 0
    cloud.start()
    assert cloud.client("s3").list_buckets()["Buckets"][0]["Name"] == "kept"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_functions_end_with_it(cloud, how):
    cloud.create_function()
    function = cloud.invoke()["pid"]
    assert alive(function)
    cloud.run("stop") if how == "stop" else cloud.kill()
    wait_for(lambda: not alive(function), 5)


def test_functions_see_nothing_of_the_users_own(shared):
    shared.create_function()
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


def mqtt_answer(cloud, certificate=None):
    """What the broker says to CONNECT, checked as a strict client would: b"" when it hangs up."""
    context = ssl.create_default_context(cadata=cloud.get("/_ministack/iot/ca.pem").decode())
    if certificate:
        context.load_cert_chain(*certificate)
    try:
        with socket.create_connection(("127.0.0.1", cloud.mqtt), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as secure:
                secure.sendall(CONNECT)
                return secure.recv(4)
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        return b""


def test_mqtt_takes_a_registered_certificate_and_nothing_less(shared, tmp_path):
    assert mqtt_answer(shared) == b""
    iot = shared.client("iot")
    made = iot.create_keys_and_certificate(setAsActive=True)
    files = tmp_path / "cert.pem", tmp_path / "key.pem"
    files[0].write_text(made["certificatePem"])
    files[1].write_text(made["keyPair"]["PrivateKey"])
    assert mqtt_answer(shared, files) == b""  # it has no policy yet
    allow = {"Effect": "Allow", "Action": "iot:Connect", "Resource": f"arn:aws:iot:{REGION}:000000000000:client/me"}
    iot.create_policy(policyName="me", policyDocument=json.dumps({"Version": "2012-10-17", "Statement": [allow]}))
    iot.attach_policy(policyName="me", target=made["certificateArn"])
    assert mqtt_answer(shared, files) == CONNACK


def refused(call, *args, **kwargs):
    with pytest.raises(urllib.error.HTTPError) as error:
        call(*args, **kwargs)
    return error.value.code == 403


def test_an_unsigned_websocket_is_refused(shared):
    host = shared.client("iot").describe_endpoint(endpointType="iot:Data-ATS")["endpointAddress"]
    upgrade = {
        "Host": host, "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "mqtt",
    }  # fmt: skip
    raw = "GET /mqtt HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in upgrade.items()) + "\r\n"
    with socket.create_connection(("127.0.0.1", shared.gateway), timeout=10) as connection:
        connection.sendall(raw.encode())
        assert b" 403 " in connection.recv(4096).splitlines()[0]


def test_web_pages_of_other_sites_are_refused(shared):
    assert refused(shared.get, "/", Origin="https://example.com")
    assert refused(shared.get, "/", Origin="null")
    assert refused(shared.get, "/", Host="example.com")
    assert refused(shared.get, "/", **{"Sec-Fetch-Site": "cross-site"})
    assert shared.get("/_ministack/health", Origin="http://localhost:8888")


# --- Lambda as Lambda does it -----------------------------------------------


def test_a_rule_retries_and_then_uses_the_aliass_destination(cloud):
    alias = cloud.create_function()
    functions, queues, metrics = cloud.client("lambda"), cloud.client("sqs"), cloud.client("cloudwatch")
    queue = queues.create_queue(QueueName="lost")["QueueUrl"]
    arn = queues.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    functions.put_function_event_invoke_config(
        FunctionName="fn", Qualifier="live", MaximumRetryAttempts=1,
        DestinationConfig={"OnFailure": {"Destination": arn}},
    )  # fmt: skip
    metrics.put_metric_alarm(
        AlarmName="errors", Namespace="AWS/Lambda", MetricName="Errors", Statistic="Sum", Period=60,
        EvaluationPeriods=1, Threshold=1, ComparisonOperator="GreaterThanOrEqualToThreshold",
    )  # fmt: skip
    rule = {"sql": "SELECT * FROM 'ask/+'", "actions": [{"lambda": {"functionArn": alias}}]}
    cloud.client("iot").create_topic_rule(ruleName="ask", topicRulePayload=rule)
    cloud.client("iot-data").publish(topic="ask/me", qos=1, payload=json.dumps({"fail": True}))
    lost = wait_for(lambda: queues.receive_message(QueueUrl=queue, WaitTimeSeconds=1).get("Messages"))
    assert json.loads(lost[0]["Body"])["requestPayload"] == {"fail": True}
    now = datetime.now(timezone.utc)
    counted = metrics.get_metric_statistics(
        Namespace="AWS/Lambda", MetricName="Errors", Dimensions=[{"Name": "FunctionName", "Value": "fn"}],
        StartTime=now - timedelta(minutes=5), EndTime=now + timedelta(minutes=1), Period=600, Statistics=["Sum"],
    )  # fmt: skip
    assert sum(point["Sum"] for point in counted["Datapoints"]) == 2  # the first try and one more
    wait_for(lambda: metrics.describe_alarms()["MetricAlarms"][0]["StateValue"] == "ALARM")


def test_reserved_concurrency_holds_for_an_alias_and_a_rule_waits_for_its_turn(cloud):
    alias = cloud.create_function()
    functions, logs = cloud.client("lambda"), cloud.client("logs")
    logs.create_log_group(logGroupName="/aws/lambda/fn")
    functions.put_function_concurrency(FunctionName="fn", ReservedConcurrentExecutions=1)
    rule = {"sql": "SELECT * FROM 'ask/+'", "actions": [{"lambda": {"functionArn": alias}}]}
    cloud.client("iot").create_topic_rule(ruleName="ask", topicRulePayload=rule)
    for _ in range(3):
        cloud.client("iot-data").publish(topic="ask/me", qos=1, payload=json.dumps({"seconds": 0.7}))
    time.sleep(0.4)
    with pytest.raises(functions.exceptions.TooManyRequestsException):
        cloud.invoke()

    def reports():
        events = logs.filter_log_events(logGroupName="/aws/lambda/fn")["events"]
        return [event for event in events if event["message"].startswith("REPORT")]

    wait_for(lambda: len(reports()) == 3)


def test_calls_at_once_are_as_many_as_a_laptop_bears(stopped):
    cloud = stopped
    cloud.start(LAMBDA_ACCOUNT_CONCURRENCY="3")
    alias = cloud.create_function()
    rule = {"sql": "SELECT * FROM 'ask/+'", "actions": [{"lambda": {"functionArn": alias}}]}
    cloud.client("iot").create_topic_rule(ruleName="ask", topicRulePayload=rule)
    logs = cloud.client("logs")
    logs.create_log_group(logGroupName="/aws/lambda/fn")
    for _ in range(12):
        cloud.client("iot-data").publish(topic="ask/me", qos=1, payload=json.dumps({"seconds": 0.3}))

    def done():
        events = logs.filter_log_events(logGroupName="/aws/lambda/fn")["events"]
        return sum(event["message"].startswith("REPORT") for event in events)

    wait_for(lambda: done() == 12)  # all had their turn
    assert 1 <= (cloud.dir / "ministack.log").read_text().count("environment spawned for fn") <= 3


# --- MiniStack changes under our feet ---------------------------------------


def test_a_patch_whose_target_is_gone_stops_the_start():
    stub = types.ModuleType("ministack.services.iot")
    with pytest.raises(SystemExit) as end:
        local.replace(stub, "_dispatch_rule_to_lambda", lambda account_id: None)
    assert "ministack.services.iot._dispatch_rule_to_lambda" in end.value.code and "1.5" in end.value.code


def test_a_patch_whose_target_takes_something_else_stops_the_start():
    stub = types.ModuleType("ministack.app")
    stub.save_all = lambda services, directory: None
    with pytest.raises(SystemExit) as end:
        local.replace(stub, "save_all", lambda services: None)
    assert "save_all(services)" in end.value.code and "(services, directory)" in end.value.code


def test_without_one_of_its_names_run_says_so_and_ends(stopped):
    script = (
        f"import sys, os; sys.path.insert(0, {str(LOCAL.parent)!r})\n"
        "import local\nfrom ministack.services import iot\ndel iot._ws_handshake_check\n"
        "local.run(local.Settings(os.environ))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], env=stopped.environment, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    assert "ministack.services.iot._ws_handshake_check" in ended.stderr and "Traceback" not in ended.stderr
