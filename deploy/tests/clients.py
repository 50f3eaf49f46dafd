"""Who walks the path from outside: the deployer, `make`, boto3 and paho-mqtt, which knows none of our Rust code."""

import csv
import fcntl
import hashlib
import json
import math
import os
import queue
import socket
import ssl
import subprocess
import sys
import zipfile
from collections import deque
from contextlib import contextmanager
from pathlib import Path

import boto3
import paho.mqtt.client as mqtt
import pytest
from botocore.config import Config
from test_local import LOCAL, free_ports

ROOT = Path(__file__).resolve().parents[2]


def given(name, default):
    """DEPLOY, CLIENT and ZIP in the environment name other builds to test."""
    return Path(os.environ.get(name) or ROOT / default).absolute()


def size(small, full):
    """How many: what is checked is the same in both sizes. FULL=1 is for the night."""
    return full if os.environ.get("FULL") == "1" else small


DEPLOY, CLIENT = given("DEPLOY", "target/notebook/deploy"), given("CLIENT", "target/notebook/client")
MODEL, ZIP = ROOT / "target/model.json", given("ZIP", "target/lambda/local/iris_fn.zip")
STACK, REGION, ACCOUNT = "walk", "us-east-1", "000000000000"
DEVICES = ROOT / f"target/devices/local/{ACCOUNT}-{REGION}/{STACK}"
BUCKET, FUNCTION = f"{STACK}-{ACCOUNT}-{REGION}", f"{STACK}-fn"
REFERENCE = json.loads((ROOT / "iris_fn/tests/reference.json").read_text())
FRUIT = (ROOT / "iris_fn/fuzz/corpus/model/fruit.json").read_bytes()  # a model of something else
with open(ROOT / "data/iris.csv", newline="") as file:
    (*NAMES, TARGET), *DATA = csv.reader(file)


def run(*command, environment=None, **settings):
    """(exit code, stdout, stderr) of a command; neither Python nor Rust may break down in it."""
    # Under `make test` these would hand the outer make's own settings down.
    outer = ("MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES", "MAKELEVEL")
    environment = environment or {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        command, cwd=ROOT, env={**environment, **settings}, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=900,
    )  # fmt: skip
    assert not any(word in done.stdout + done.stderr for word in ("Traceback", "panicked")), done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def trained_model():
    """The bytes of target/model.json. Notebook 01 makes it: once, when several test processes miss it at once, or have
    one of an older schema."""
    MODEL.parent.mkdir(exist_ok=True)
    with open(MODEL.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not MODEL.exists() or json.loads(MODEL.read_bytes())["schema"] != 2:
            code, out, err = run(ROOT / ".venv/bin/python", "notebooks/kernel/run.py", "notebooks/01_train.ipynb")
            assert code == 0, out + err
        return MODEL.read_bytes()


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def iris():
    """[(values, label)] of the data that the notebooks train on."""
    return [(tuple(map(float, values)), label) for *values, label in DATA]


# The first row of the data.
ROW, LABEL = dict(zip(NAMES, iris()[0][0])), iris()[0][1]


def request(**changes):
    return json.dumps({"request_id": "r", **ROW, **changes}).encode()


def probabilities(weights, intercepts, x):
    """P(k) = exp(z_k) / Σ_j exp(z_j), z = weights · x + intercepts; shifted, so that exp cannot overflow."""
    z = [b + sum(w * v for w, v in zip(row, x)) for row, b in zip(weights, intercepts)]
    powers = [math.exp(each - max(z)) for each in z]
    return [power / sum(powers) for power in powers]


def expected(x):
    """{class: probability} by scikit-learn's weights."""
    p = probabilities(REFERENCE["weights_class_by_feature"], REFERENCE["intercepts"], x)
    return pytest.approx(dict(zip(REFERENCE["classes"], p)), abs=1e-4)


def zipped(path, **files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o755 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return path


class Cloud:
    """A local cloud on ports and in a folder of its own, the deployer for it, and AWS clients."""

    def __init__(self, directory, devices=DEVICES):
        self.dir, self.devices, self.archives, self.zip = directory, devices, directory.with_name("class"), ZIP
        self.gateway, self.mqtt = free_ports(2)
        self.settings = {  # what a user would give to `make`
            "STACK": STACK, "TARGET": "local", "LOCAL_DIR": str(directory), "GATEWAY_PORT": str(self.gateway),
            "IOT_MTLS_PORT": str(self.mqtt),
        }  # fmt: skip
        self.environment = {  # what `make` makes of that
            **self.settings, "AWS_ENDPOINT_URL": self.url, "AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
            "PATH": os.environ["PATH"], "HOME": "/nonexistent",
        }  # fmt: skip

    def command(self, target, **changes):
        """What `make target` calls in the end, with folders of our own."""
        if target in ("local", "stop"):
            return [sys.executable, LOCAL, "start" if target == "local" else "stop"]
        zip, name = changes.get("ZIP", self.zip), changes.get("NAME", "lily")
        arguments = {
            "plan": ["plan", zip], "deploy": ["up", zip], "publish": ["publish", changes.get("MODEL", MODEL)],
            "device-dir": ["device-dir", name], "device": ["device", name, "--mosquitto", "--dir", self.devices], "destroy": ["destroy", "--dir", self.devices],
            "class": ["class", zip, "--dir", self.archives], "class-destroy": ["class-destroy", "--dir", self.archives],
        }  # fmt: skip
        return [DEPLOY, *arguments.get(target, [target])]

    def make(self, target, **changes):
        """`make target`, but without looking first whether everything is installed and the cloud runs."""
        if target == "build":
            return self.by_make(target, **changes)
        settings = {name: str(value) for name, value in changes.items()}
        return run(*self.command(target, **changes), environment=self.environment, **settings)

    def by_make(self, target, *options, **changes):
        """The Makefile itself."""
        settings = {**self.settings, "DEPLOY": DEPLOY, "CLIENT": CLIENT, "ZIP": self.zip, **changes}
        return run("make", *options, target, *(f"{name}={value}" for name, value in settings.items()))

    def must(self, target, make=None, **changes):
        """What `make target` says when it succeeds."""
        code, out, err = (make or self.make)(target, **changes)
        assert code == 0, f"make {target}: {out}\n{err}"
        return out

    @property
    def url(self):
        return f"http://127.0.0.1:{self.gateway}"

    def client(self, service, key="test", secret="test", token=None):
        """An AWS client; without keys it is root's, who may do everything here."""
        return boto3.client(
            service, endpoint_url=self.url, region_name=REGION, aws_access_key_id=key, aws_secret_access_key=secret,
            aws_session_token=token, config=Config(retries={"max_attempts": 0}),
        )  # fmt: skip

    def deployer(self, *arguments, key="test", secret="test", stack=STACK):
        """The deployer in its own process; its errors are in its output."""
        environment = {**self.environment, "STACK": stack, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        return subprocess.Popen(
            [DEPLOY, *arguments], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def device(self, name, client_id=None):
        return Device(name, client_id, self.devices / name)

    def publish(self, model):
        """As notebook 02 and `make publish` do: a name that never changes, then the copy that is in use."""
        for key in (f"models/{sha256(model)}.json", "models/current.json"):
            self.client("s3").put_object(Bucket=BUCKET, Key=key, Body=model)

    def invoke(self, payload):
        """The answer of `live`. Whatever is asked, the invocation itself succeeds."""
        reply = self.client("lambda").invoke(FunctionName=FUNCTION, Qualifier="live", Payload=payload)
        assert "FunctionError" not in reply
        return json.loads(reply["Payload"].read())

    def current(self):
        """The bytes of the current model."""
        return self.client("s3").get_object(Bucket=BUCKET, Key="models/current.json")["Body"].read()

    def alias(self):
        alias = self.client("lambda").get_alias(FunctionName=FUNCTION, Name="live")
        return alias["FunctionVersion"], alias["RevisionId"]


@contextmanager
def deployed_cloud(folder, model, **settings):
    """A cloud with a bucket, a model and a function that answers by it."""
    cloud = Cloud(folder / "local", folder / "devices")
    cloud.must("local", **settings)
    try:
        cloud.must("bucket")
        cloud.publish(model)
        cloud.must("deploy")
        yield cloud
    finally:
        cloud.must("stop")


class Device:
    """An MQTT client with what `make device` wrote: it checks the broker's name, the broker its certificate."""

    def __init__(self, name, client_id=None, folder=None, stack=STACK):
        folder, self.stack = folder or DEVICES / name, stack
        self.endpoint = json.loads((folder / "endpoint.json").read_text())
        self.id, self.inbox, self._events = self.endpoint["client_id"], queue.Queue(), queue.Queue()
        tls = ssl.create_default_context(cafile=folder / "ca.pem")  # CERT_REQUIRED and check_hostname
        tls.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id or self.id, reconnect_on_failure=False)
        self.client.tls_set_context(tls)
        self.client.on_socket_open = lambda _c, _u, sock: sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.client.on_connect = lambda _c, _u, _flags, reason, _p: self._events.put(not reason.is_failure)
        self.client.on_subscribe = lambda _c, _u, _id, reasons, _p: self._events.put(not reasons[0].is_failure)
        self.client.on_disconnect = lambda *_: self._events.put(False)
        self.client.on_message = lambda _c, _u, message: self.inbox.put(json.loads(message.payload))

    def __enter__(self):
        self.client.connect(self.endpoint["host"], self.endpoint["port"])
        self.client.loop_start()
        self.accepted = self._events.get(timeout=10)  # by a CONNACK; False: refused, or closed
        return self

    def __exit__(self, *_):
        self.client.disconnect()
        self.client.loop_stop()

    def subscribe(self, topic):
        """Whether the broker grants it: it says so in a SUBACK, or it refuses, or closes the connection."""
        self.client.subscribe(topic, qos=1)
        return self._events.get(timeout=10)

    def listening(self):
        assert self.accepted and self.subscribe(f"{self.stack}/response/{self.id}")
        return self

    def send(self, payload):
        self.client.publish(f"{self.stack}/request/{self.id}", payload, qos=1)

    def ask(self, requests, window=8):
        """{request_id: answer}, with few requests pending at a time. MQTT and Lambda may both lose one: when
        nothing comes for 3 s, all pending ones are sent again under the same request_id."""
        left, asked, answers, patience = deque(requests), {}, {}, 4
        while left or asked:
            while left and len(asked) < window:
                request = left.popleft()
                asked[request["request_id"]] = json.dumps(request)
                self.send(asked[request["request_id"]])
            try:
                answer = self.inbox.get(timeout=3)
                answers[answer["request_id"]] = answer
                asked.pop(answer["request_id"], None)  # None: answered twice, because it was sent twice
            except queue.Empty:
                patience -= 1
                assert patience, f"no answer to {list(asked)}"
                for payload in asked.values():
                    self.send(payload)
        return answers
