"""Other people's clients: every block of client/README.md, run as it stands, and what its table says of MQTT.

The blocks need Debian's `mosquitto-clients`, Node.js with `npm`, and the AWS CLI; without one, the tests that need it
are skipped and say so.
"""

import json
import os
import queue
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import paho.mqtt.client as mqtt
import pytest
from clients import LABEL, ROOT, ROW, TARGET, Cloud

PAGE = (ROOT / "client/README.md").read_text()
STACK, NAME, MQTT_JS = "pasted", "lily", "mqtt@5.16.0"
HERE = f"{sys.executable.rpartition('/')[0]}:{os.environ['PATH']}"


def sections():
    """{heading: [(language, code)]} of the page."""
    _, *parts = re.split(r"^#+ (.+)$", PAGE, flags=re.M)
    block = re.compile(r"^( *)```(\w+)\n(.*?)^\1```$", re.M | re.S)
    found = {heading: [(language, code) for _, language, code in block.findall(text)] for heading, text in zip(parts[::2], parts[1::2])}
    return {heading: blocks for heading, blocks in found.items() if blocks}


SECTIONS = sections()
FIRST, WHY = "Use another client", "Why was it refused?"
NEEDS = {  # what else must be there: (whether it is, and what it is called)
    "mosquitto": (shutil.which("mosquitto_rr") and shutil.which("aws"), "Debian's mosquitto-clients and the AWS CLI"),
    "Python: paho": (True, ""),
    "Python: AWS IoT Device SDK v2": (True, ""),
    "JavaScript: MQTT.js": (shutil.which("node") and shutil.which("npm"), "Node.js and npm"),
    "Without MQTT: AWS CLI, boto3": (shutil.which("aws"), "the AWS CLI"),
}


class Shell:
    """Where the page's blocks run: a local cloud on ports of its own, and the variables that the first block sets."""

    def __init__(self, folder):
        self.folder, self.cloud = folder, Cloud(folder / "local")
        for settings in (self.cloud.settings, self.cloud.environment):
            settings["STACK"] = STACK
        outer = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")
        kept = {name: value for name, value in os.environ.items() if name not in outer and not name.startswith("AWS_")}
        self.environment = {**kept, **self.cloud.settings, "PATH": HERE, "NODE_PATH": str(folder / "node_modules")}
        # The page has the settings' defaults.
        self.instead = {
            "STACK=iris": f"STACK={STACK}", f"iris-{NAME}": f"{STACK}-{NAME}", "8883": self.cloud.mqtt,
            "4566": self.cloud.gateway, "target/local/": f"{self.cloud.dir}/",
        }  # fmt: skip

    def run(self, language, code):
        """What a block prints. The variables that it exports stay, as in a terminal."""
        for default, ours in self.instead.items():
            code = code.replace(default, str(ours))
        variables = self.folder / "variables"
        if language == "sh":
            code += f"\nenv -0 > '{variables}'"
        program = {"sh": ["sh", "-euc"], "python": [sys.executable, "-c"], "js": ["node", "-e"]}[language]
        done = subprocess.run(
            [*program, code], cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        if language == "sh":
            self.environment = dict(each.split("=", 1) for each in variables.read_text().split("\0") if each)
        return done.stdout

    def device(self, name):
        return Path(ROOT, self.environment["D"], name)

    @contextmanager
    def connection(self, client_id=None, will=None, **options):
        """paho's client with the device's certificate, and a function that waits for what happens to it next."""
        happened = queue.Queue()
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id or self.environment["ID"], reconnect_on_failure=False, **options
        )
        client.tls_set(self.device("ca.pem"), self.device("cert.pem"), self.device("key.pem"))
        client.on_connect = lambda c, _, flags, reason, p: happened.put(("connected", str(reason)))
        client.on_disconnect = lambda *_: happened.put(("closed", ""))
        client.on_subscribe = lambda c, _, number, reasons, p: happened.put(("subscribed", str(reasons[0])))
        client.on_publish = lambda c, _, number, reason, p: happened.put(("acknowledged", str(reason)))
        client.on_message = lambda c, _, message: happened.put(("answer", json.loads(message.payload)))
        if will:
            client.will_set(*will)
        client.connect("127.0.0.1", self.cloud.mqtt)
        client.loop_start()
        try:
            yield client, lambda seconds=10: happened.get(timeout=seconds)
        finally:
            client.disconnect()
            client.loop_stop()

    @contextmanager
    def listening(self, **options):
        """The same, connected and subscribed to its answers."""
        with self.connection(**options) as (client, next_event):
            assert next_event() == ("connected", "Success")
            client.subscribe(self.topic("response"), qos=1)
            assert next_event() == ("subscribed", "Granted QoS 1")
            yield client, next_event

    def topic(self, kind):
        return f"{STACK}/{kind}/{self.environment['ID']}"


@pytest.fixture(scope="module")
def shell(tmp_path_factory, model):
    shell = Shell(tmp_path_factory.mktemp("pasted"))
    cloud, file = shell.cloud, shell.folder / "model.json"
    file.write_bytes(model)
    cloud.must("local")
    try:
        cloud.must("bucket")
        cloud.must("publish", MODEL=file)
        cloud.must("deploy")
        [(language, code)] = SECTIONS[FIRST]
        shell.printed = shell.run(language, code)
        yield shell
        cloud.deployer("destroy", stack=STACK).wait(120)
    finally:
        cloud.must("stop")


def answered(printed):
    """The answer among what was printed."""
    [answer] = [json.loads(line) for line in printed.splitlines() if '"request_id"' in line]
    return answer["request_id"], answer.get(TARGET)


# --- the page's blocks ------------------------------------------------------------


def test_no_block_of_the_page_is_left_out():
    assert SECTIONS.keys() == {FIRST, WHY, *NEEDS}


@pytest.mark.parametrize("heading", NEEDS)
def test_each_client_gets_an_answer(shell, heading):
    there, name = NEEDS[heading]
    if not there:
        pytest.skip(f"the page's section {heading!r} needs {name}")
    if "js" in dict(SECTIONS[heading]):
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", shell.folder, MQTT_JS]
        subprocess.run(install, check=True, timeout=300)
    for language, code in SECTIONS[heading]:
        printed = shell.run(language, code)
        if "make tail" in code:
            assert '"q1"' in printed, printed
        else:
            assert answered(printed) == ("q1", LABEL), printed


def test_make_device_prints_a_line_for_mosquitto(shell):
    [line] = [line for line in shell.printed.splitlines() if "mosquitto_rr" in line]
    if not NEEDS["mosquitto"][0]:
        pytest.skip("the line itself needs Debian's mosquitto-clients")
    answer = json.loads(shell.run("sh", line))
    assert answer["request_id"] == "1" and answer["target"] == TARGET, answer


def test_the_brokers_log_says_why(shell):
    with shell.connection(client_id=NAME) as (_, next_event):
        assert next_event() == ("closed", "")
    [(language, code)] = SECTIONS[WHY]
    assert f"iot:Connect on client/{NAME}\n" in shell.run(language, code)


# --- what MQTT can do here, the left column ---------------------------------------


def test_mqtt_5_says_why(shell):
    with shell.connection(client_id=NAME, protocol=mqtt.MQTTv5) as (_, next_event):
        assert next_event() == ("connected", "Not authorized")
    with shell.connection(protocol=mqtt.MQTTv5) as (client, next_event):
        assert next_event() == ("connected", "Success")
        client.subscribe(f"{STACK}/response/{NAME}", qos=1)
        assert next_event() == ("subscribed", "Not authorized")
        client.publish(f"{STACK}/request/{NAME}", "{}", qos=1)
        assert next_event() == ("acknowledged", "Not authorized")


def test_qos_2_is_answered_and_never_acknowledged(shell):
    with shell.connection() as (client, next_event):
        assert next_event() == ("connected", "Success")
        client.subscribe(shell.topic("response"), qos=2)
        assert next_event() == ("subscribed", "Granted QoS 1")
        client.publish(shell.topic("request"), json.dumps({"request_id": "2", **ROW}), qos=2)
        kind, answer = next_event()
        assert (kind, answer[TARGET]) == ("answer", LABEL)
        with pytest.raises(queue.Empty):
            next_event(2)


def test_a_retained_message_is_refused(shell):
    with shell.listening() as (client, next_event):
        client.publish(shell.topic("request"), json.dumps({"request_id": "3", **ROW}), qos=1, retain=True)
        assert next_event() == ("closed", "")


def test_a_last_will_asks_and_a_session_keeps_the_answer(shell):
    will = (shell.topic("request"), json.dumps({"request_id": "4", **ROW}), 1)
    with shell.listening(will=will, clean_session=False) as (client, next_event):
        client.socket().shutdown(socket.SHUT_RDWR)
        assert next_event() == ("closed", "")
    with shell.connection(clean_session=False) as (client, next_event):
        assert {next_event()[0], next_event()[0]} == {"connected", "answer"}
    with shell.connection(will=(f"{STACK}/response/{NAME}", "", 1)) as (_, next_event):
        assert next_event() == ("closed", "")


# --- what people send -------------------------------------------------------------

REQUEST = json.dumps({"request_id": "p1", **ROW})


@pytest.mark.parametrize(
    "sent, request_id, code, message",
    [
        ("\ufeff" + REQUEST, "p1", "malformed_json", "byte order mark: send UTF-8 without one"),
        (REQUEST.encode("utf-16"), None, "malformed_json", "the text is UTF-16: send UTF-8"),
        (REQUEST.replace("1.4", "NaN"), "p1", "malformed_json", "not JSON"),
        (REQUEST.replace("1.4", '"1.4"'), "p1", "not_a_number", "`petal_length` must be a number, found a string"),
        (REQUEST.replace("request_id", "requestId"), None, "missing_field", "`request_id` is missing"),
        (REQUEST.replace("petal_length", "petalLength"), "p1", "missing_field", "`petal_length` is missing"),
        (REQUEST.replace('"p1"', "1"), 1, "malformed_json", "`request_id` must be a string, found a number"),
        ("", None, "malformed_json", "found nothing: send a JSON object"),
        ("5.1,3.5,1.4,0.2", None, "malformed_json", "found text that is not JSON: send a JSON object"),
        (REQUEST[:-1] + f', "pad": "{"x" * 131072}"}}', "p1", None, None),
    ],
    ids=["BOM", "UTF-16", "NaN", "text", "camelCase id", "camelCase", "number as id", "empty", "CSV", "131 KB"],
)  # fmt: skip
def test_what_people_send_is_answered(shell, sent, request_id, code, message):
    with shell.listening() as (client, next_event):
        client.publish(shell.topic("request"), sent, qos=1)
        events = dict([next_event(), next_event()])
    answer = events["answer"]
    assert answer["request_id"] == request_id, answer
    if code:
        assert answer["error"]["code"] == code and message in answer["error"]["message"], answer
    else:
        assert answer[TARGET] == LABEL, answer
