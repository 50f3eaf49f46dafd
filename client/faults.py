#!/usr/bin/env python3
"""Break the network, the broker, the function and the store, and see what becomes of each question.

Every case runs the real client, broker, certificates and function, and breaks one thing while questions are
under way. A question must end exactly once: answered as scikit-learn's weights say, refused with a code, or failed
with a typed error before its deadline. One that ends in silence is lost. A case must also show that its fault
happened, or it proves nothing.

    make faults             all cases, the steady load for one minute
    make faults SOAK=1      the steady load for thirty minutes
    make faults CASE=broker only the cases whose name contains this

It starts a local cloud of its own on free ports and leaves nothing behind. The function is the real program under a
shell script that a case can tell to fail, and talks to the cloud by way of a gateway that a case can close.
"""

import http.client
import itertools
import json
import math
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "deploy" / "tests"))

from clients import (  # noqa: E402
    BUCKET, CLIENT, FEATURES, FUNCTION, MODEL, STACK, ZIP, Cloud, Device, expected, iris, zipped,
)  # fmt: skip

MALFORMED = [
    b"", b"\xff\xfe", b"hello", b"{", b"[]", b"null", b"1e308", b'"text"', b"{}", b'{"request_id": 1}',
    b'{"request_id": "r"}', b'{"request_id": "r", "flowers": 1}', b'{"request_id": "r", "flowers": [{}]}',
    b'{"request_id": "r", "sepal_length": "5.1", "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}',
    b'{"request_id": "r", "sepal_length": null, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}',
    b'{"request_id": "r", "sepal_length": NaN, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}',
    b'{"request_id": "r", "sepal_length": 1e308, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}',
    b'{"request_id": "r", "sepal_length": -5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}',
    b'{"request_id": "r", "sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4}',
    b'{"request_id": "%s", "sepal_length": 5.1, "sepal_width": 3.5, "petal_length": 1.4, "petal_width": 0.2}' % (b"r" * 200),
]  # fmt: skip
BOOTSTRAP = """#!/bin/sh
# Fails to start while {folder}/no-start is there; otherwise the real function, which reaches the cloud by our gateway.
test ! -e {folder}/no-start || exit 1
export AWS_ENDPOINT_URL=http://127.0.0.1:{port}
exec "$(dirname "$0")/function"
"""


class Fault(Exception):
    """A case did not show what it is for."""


def must(fact, what):
    if not fact:
        raise Fault(what)


# --- what can be broken -----------------------------------------------------


class Wire:
    """A TCP proxy in front of the broker: it can cut, stop for a while, and swallow one direction."""

    def __init__(self, to):
        self.to, self.pairs, self.cuts, self.swallowed = to, [], 0, 0
        self.open, self.swallow = threading.Event(), None
        self.open.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.to), 5)
            except OSError:
                near.close()
                continue
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = (near, far)
            self.pairs.append(pair)
            for source, sink, way in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._pump, args=(source, sink, way, pair), daemon=True).start()

    def _pump(self, source, sink, way, pair):
        try:
            while data := source.recv(65536):
                self.open.wait()
                if self.swallow == way:
                    self.swallowed += len(data)
                else:
                    sink.sendall(data)
        except OSError:
            pass
        for each in pair:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            each.close()

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for near, far in pairs:
            for each in (near, far):
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue
        self.cuts += len(pairs)

    def stall(self, seconds):
        self.open.clear()
        time.sleep(seconds)
        self.open.set()

    def close(self):
        self.listener.close()
        self.cut()


class Gateway:
    """What the function takes for the cloud: passes its calls on, unless a case has closed S3 or iot-data."""

    def __init__(self, to):
        self.to, self.closed, self.refused, self.hang = to, set(), Counter(), threading.Event()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def service(self):
                return "iot" if self.path.startswith("/topics/") else "s3"

            def handle_one(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service = self.service()
                if service in gateway.closed:
                    gateway.refused[service] += 1
                    if f"{service} hangs" in gateway.closed:
                        time.sleep(5)
                    self.close_connection = True
                    return
                try:
                    upstream = http.client.HTTPConnection("127.0.0.1", gateway.to, timeout=20)
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    reply = upstream.getresponse()
                    data = reply.read()
                except OSError:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                upstream.close()

            do_GET = do_PUT = do_POST = do_HEAD = handle_one

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):  # a function that was killed in the middle of a call
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class World:
    """A cloud, the stack, and all that can be broken in it."""

    def __init__(self, folder):
        self.folder = folder
        self.cloud = Cloud(folder / "local")
        self.gateway = Gateway(self.cloud.gateway)
        self.wire = Wire(self.cloud.mqtt)
        self.devices = folder / "devices"
        self.good = MODEL.read_bytes()

    def __enter__(self):
        cloud, bootstrap = self.cloud, BOOTSTRAP.format(folder=self.folder, port=self.gateway.port)
        cloud.must("local")
        cloud.must("bucket")
        cloud.publish(self.good)
        program = zipfile.ZipFile(ZIP).read("bootstrap")
        cloud.must("deploy", ZIP=zipped(self.folder / "function.zip", bootstrap=bootstrap, function=program))
        for names in (["asker"], ["other"], ["load", "--count", "50"]):
            self.deployer("device", *names, "--dir", self.devices)
        return self

    def __exit__(self, *_):
        self.wire.close()
        self.gateway.server.shutdown()
        self.cloud.make("stop")

    def deployer(self, *arguments, stack=STACK):
        """What the deployer says; it must succeed."""
        process = self.cloud.deployer(*map(str, arguments), stack=stack)
        out, _ = process.communicate(timeout=300)
        must(process.returncode == 0, f"deploy {arguments}: {out}")
        return out

    def functions(self):
        """Process ids of the containers."""
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "exe").startswith(f"{self.folder}/local/"):
                    pids.append(int(process.name))
            except OSError:
                continue
        return pids

    def signal(self, number):
        pids = self.functions()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return len(pids)

    def pid(self):
        return json.loads((self.cloud.dir / "pid").read_text())["pid"]


# --- who asks ---------------------------------------------------------------


class Asker:
    """The client, in a process of its own: takes questions on its standard input, one line each, and says of each how
    it ended."""

    def __init__(self, world, port=None, deadline=15):
        self.flowers, self.ends, self.counters, self.first = {}, {}, None, {}
        self.times = []
        command = [CLIENT, "--dir", world.devices, "predict", "--requests", "-", "--json", "--device", "asker"]
        command += ["--port", str(port or world.cloud.mqtt), "--deadline", str(deadline)]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, **pipes, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            said = json.loads(line)
            if "counters" in said:
                self.counters = said["counters"]
            else:
                self.times.append(time.monotonic())
                self.ends.setdefault(said["request_id"], []).append(said)

    def ask(self, flowers, rate, prefix="q"):
        """Hand the questions over at a rate."""
        began = time.monotonic()
        for n, flower in enumerate(flowers):
            time.sleep(max(0, began + n / rate - time.monotonic()))
            request_id = f"{prefix}-{n}"
            self.flowers[request_id] = flower
            self.send(json.dumps({"request_id": request_id, **dict(zip(FEATURES, flower))}))

    def send(self, text):
        try:
            self.process.stdin.write(text + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # the client has ended: `finish` says why

    def finish(self, seconds=60):
        """Wait until every question has ended."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait(seconds)
        self.reader.join(10)
        must(self.counters, f"the client ended with {self.process.returncode}: {self.process.stderr.read()}")

    def memory(self):
        return memory_of(self.process.pid)

    def tally(self):
        count = Counter()
        for request_id, flower in self.flowers.items():
            ends = self.ends.get(request_id, [])
            count["tried"] += 1
            count["lost"] += not ends
            count["duplicates_shown"] += max(0, len(ends) - 1)
            for end in ends[:1]:
                count[end["outcome"]] += 1
                if end["outcome"] == "answered":
                    count["wrong"] += not right(end["answer"], flower)
        return count


def right(answer, flower):
    p = answer.get("probabilities")
    return p == expected(flower) and answer.get("species") == max(p, key=p.get)


def memory_of(pid):
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return math.nan


def flowers(count):
    rows = itertools.cycle(flower for flower, _ in iris())
    return list(itertools.islice(rows, count))


# --- the cases --------------------------------------------------------------

CASES = []


def case(name, count=120, rate=30, wire=False, least=1.0, **settings):
    """A case: questions at a rate, and something that goes wrong meanwhile. The function returns what showed that
    it did, as text. At least so great a share of the questions must have a reply; the others a typed failure."""

    def register(function):
        def run(world):
            asker = Asker(world, world.wire.port if wire else None, **settings)
            feed = threading.Thread(target=asker.ask, args=(flowers(count), rate), daemon=True)
            feed.start()
            try:
                time.sleep(0.5)
                seen = function(world, asker)
                feed.join()
                asker.finish()
            finally:
                asker.process.kill()
            if callable(seen):
                seen = seen()
            tally = asker.tally()
            replies = tally["answered"] + tally["refused"]
            must(replies >= least * tally["tried"], f"only {replies} of {tally['tried']} have a reply")
            return tally, seen, asker.counters

        CASES.append((name, run))
        return function

    return register


def alone(name):
    """A case that asks in a way of its own and gives back its own tally."""

    def register(function):
        CASES.append((name, lambda world: function(world)))
        return function

    return register


def asked_again(asker, fact, otherwise):
    """What showed that calls failed: their questions were asked again."""

    def seen():
        must(fact and asker.counters["retried"], otherwise)
        return f"asked again {asker.counters['retried']}"

    return seen


def reconnected(asker, at_least=1):
    def seen():
        must(asker.counters["reconnected"] >= at_least, f"reconnected only {asker.counters['reconnected']} times")
        return f"reconnected {asker.counters['reconnected']}, asked again {asker.counters['retried']}"

    return seen


@case("nothing is broken")
def _(world, asker):
    return lambda: f"asked again {asker.counters['retried']}"


def back_again(world, asker, end):
    end()
    gone = time.monotonic()
    world.cloud.must("local")
    back = time.monotonic()

    def seen():
        first = min((t for t in asker.times if t > back), default=None)
        must(first, "no answer after the broker was back")
        must(asker.counters["reconnected"] >= 1, "the connection never broke")
        return f"away {back - gone:.1f} s, first answer {first - back:.1f} s after"

    return seen


@case("broker restarted mid-run", count=200)
def _(world, asker):
    return back_again(world, asker, lambda: world.cloud.must("stop"))


@case("cloud killed with kill -9 and started again with its state", count=200)
def _(world, asker):
    time.sleep(6)  # what is some seconds old is saved
    return back_again(world, asker, lambda: os.kill(world.pid(), signal.SIGKILL))


@case("connection cut every second", count=200, wire=True)
def _(world, asker):
    for _ in range(6):
        time.sleep(1)
        world.wire.cut()
    return reconnected(asker, 3)


@case("network stalls for 2 s", wire=True)
def _(world, asker):
    world.wire.stall(2)

    def seen():
        slowest = max(end["ms"] for ends in asker.ends.values() for end in ends)
        must(slowest > 1000, "nothing was slow")
        return f"slowest {slowest:.0f} ms"

    return seen


def swallowed(world, asker, way):
    before = world.wire.swallowed
    world.wire.swallow = way
    time.sleep(4)
    world.wire.swallow = None
    world.wire.cut()  # what is missing in the middle of a TLS stream is missing for good
    must(world.wire.swallowed > before, "nothing was swallowed")
    return reconnected(asker)


@case("everything to the broker is dropped for 4 s", count=200, wire=True)
def _(world, asker):
    return swallowed(world, asker, "up")


@case("everything from the broker is dropped for 4 s", count=200, wire=True)
def _(world, asker):
    return swallowed(world, asker, "down")


@case("every request delivered twice", count=100, rate=20)
def _(world, asker):
    data = world.cloud.client("iot-data")
    done = set()
    while len(done) < 100:
        for request_id, flower in list(asker.flowers.items()):
            if request_id not in done:
                done.add(request_id)
                payload = json.dumps({"request_id": request_id, **dict(zip(FEATURES, flower))})
                data.publish(topic=f"{STACK}/request/{STACK}-asker", qos=1, payload=payload)
        time.sleep(0.01)

    def seen():
        must(asker.counters["duplicate"] >= 50, f"only {asker.counters['duplicate']} duplicates")
        return f"{asker.counters['duplicate']} second answers dropped"

    return seen


@case("answers doubled and out of order", count=100, rate=20)
def _(world, asker):
    data = world.cloud.client("iot-data")
    answers = []
    for n, flower in enumerate(flowers(100)):
        request = {"request_id": f"q-{n}", **dict(zip(FEATURES, flower))}
        answers += [world.cloud.invoke(json.dumps(request).encode())] * 2
    random.Random(1).shuffle(answers)
    for answer in answers:
        data.publish(topic=f"{STACK}/response/{STACK}-asker", qos=1, payload=json.dumps(answer))

    def seen():
        dropped = asker.counters["duplicate"] + asker.counters["stray"]
        must(dropped >= 100, f"only {dropped} dropped")
        return f"{dropped} dropped"

    return seen


@case("function crashes in init")
def _(world, asker):
    flag = world.folder / "no-start"
    flag.touch()
    killed = world.signal(signal.SIGKILL)
    time.sleep(3)
    flag.unlink()
    return asked_again(asker, killed, "no call failed")


@case("function crashes mid-request", rate=40, count=200)
def _(world, asker):
    killed = 0
    for _ in range(20):
        killed += world.signal(signal.SIGKILL)
        time.sleep(0.15)
    return asked_again(asker, killed >= 5, f"only {killed} containers killed")


@case("function times out", count=360)
def _(world, asker):
    timed_out = lambda: (world.cloud.dir / "ministack.log").read_text().count("Task timed out")  # noqa: E731
    before = timed_out()
    world.signal(signal.SIGSTOP)
    time.sleep(11)  # the template's Timeout is 10 s
    return asked_again(asker, timed_out() > before, "no call timed out")


@case("function throttled for 3 s")
def _(world, asker):
    function = world.cloud.client("lambda")
    function.put_function_concurrency(FunctionName=FUNCTION, ReservedConcurrentExecutions=0)
    time.sleep(3)
    function.delete_function_concurrency(FunctionName=FUNCTION)
    return asked_again(asker, True, "no call was throttled")


def without(world, asker, service, seconds, hangs=False, cold=False):
    gateway = world.gateway
    gateway.closed |= {service, f"{service} hangs"} if hangs else {service}
    before = gateway.refused[service]
    if cold:
        world.signal(signal.SIGKILL)
    time.sleep(seconds)
    gateway.closed.clear()
    refused = gateway.refused[service] - before
    must(refused, f"the function never called {service}")
    return f"{refused} calls of the function failed"


@case("S3 away at a cold start")
def _(world, asker):
    return without(world, asker, "s3", 3, cold=True)


@case("S3 away at a refresh", count=300)
def _(world, asker):
    return without(world, asker, "s3", 7)


@case("S3 says nothing at a refresh", count=300)
def _(world, asker):
    return without(world, asker, "s3", 7, hangs=True)


@case("iot-data away for 3 s")
def _(world, asker):
    return without(world, asker, "iot", 3)


def current(world, content):
    began = int(time.time() * 1000)
    world.cloud.client("s3").put_object(Bucket=BUCKET, Key="models/current.json", Body=content)
    time.sleep(8)  # MODEL_TTL is 5 s
    world.cloud.publish(world.good)
    log = world.cloud.client("logs").filter_log_events(
        logGroupName=f"/aws/lambda/{FUNCTION}", startTime=began, filterPattern='"the last good model stays in use"'
    )
    must(log["events"], "no container looked at it")
    return "refused by its containers, the last good model served on"


@case("damaged model published", count=300)
def _(world, asker):
    return current(world, world.good[: len(world.good) // 2])


@case("model of another schema published", count=300)
def _(world, asker):
    return current(world, world.good.replace(b'"schema": 1', b'"schema": 2').replace(b'"schema":1', b'"schema":2'))


@case("second client with the same id", count=150)
def _(world, asker):
    for _ in range(3):
        with Device("asker", folder=world.devices / "asker") as twin:
            twin.listening()
            time.sleep(0.2)
        time.sleep(0.7)
    return reconnected(asker, 3)


# --- forbidden --------------------------------------------------------------


def refusal(tried, refused, seen):
    return Counter(tried=tried, refused=refused, lost=tried - refused), seen, {}


def cannot_connect(world, folder):
    """What the client says, which must fail in time."""
    done = subprocess.run(
        [CLIENT, "--dir", folder.parent, "predict", "--device", folder.name, "--", "5.1", "3.5", "1.4", "0.2"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    must(done.returncode != 0 and done.stderr.startswith("error: "), f"it connected: {done.stdout}{done.stderr}")
    return refusal(1, 1, done.stderr.strip().removeprefix("error: ")[:90])


def copy_of(world, name):
    return Path(shutil.copytree(world.devices / "asker", world.folder / f"{name}-{time.monotonic_ns()}" / name))


@alone("unregistered certificate")
def _(world):
    from datetime import datetime, timedelta, timezone

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder, key = copy_of(world, "unregistered"), ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "stranger")]), datetime.now(timezone.utc)
    certificate = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1)
    )
    certificate = certificate.sign(key, hashes.SHA256())
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*encoding))
    return cannot_connect(world, folder)


@alone("deactivated certificate")
def _(world):
    world.deployer("device", "gone", "--dir", world.devices)
    iot = world.cloud.client("iot")
    [arn] = iot.list_thing_principals(thingName=f"{STACK}-gone")["principals"]
    iot.update_certificate(certificateId=arn.partition(":cert/")[2], newStatus="INACTIVE")
    return cannot_connect(world, world.devices / "gone")


@alone("certificate of another stack")
def _(world):
    # A device of another stack, which comes as one of ours.
    cloud = world.cloud
    cloud.must("bucket", STACK="elsewhere")
    for key in ("models/current.json",):
        cloud.client("s3").put_object(Bucket=BUCKET.replace(STACK, "elsewhere", 1), Key=key, Body=world.good)
    cloud.must("deploy", STACK="elsewhere")
    world.deployer("device", "theirs", "--dir", world.folder / "elsewhere", stack="elsewhere")
    folder = copy_of(world, "theirs")
    for name in ("cert.pem", "key.pem"):
        shutil.copy(world.folder / "elsewhere/theirs" / name, folder / name)
    return cannot_connect(world, folder)


def forbidden(world, attempt):
    """Whether the broker hung up on a device that did this, or refused it."""
    with Device("other", folder=world.devices / "other") as device:
        device.listening()
        return attempt(device)


@alone("device publishes on another's topic")
def _(world):
    def attempt(device):
        device.client.publish(f"{STACK}/request/{STACK}-asker", json.dumps({"request_id": "forged"}), qos=1)
        try:
            return device._events.get(timeout=3) is False
        except queue.Empty:
            return False

    asker = Asker(world)
    hung_up = forbidden(world, attempt)
    asker.ask(flowers(1), 1)
    asker.finish()
    must(asker.counters["stray"] == 0, "the forged question was answered")
    return refusal(1, int(hung_up), "the broker hangs up, and nobody is answered")


@alone("device subscribes to all topics")
def _(world):
    def attempt(device):
        return not device.subscribe("#")

    return refusal(1, int(forbidden(world, attempt)), "the broker refuses or hangs up")


# --- too much ---------------------------------------------------------------


@alone("128 KB exactly, and a byte more")
def _(world):
    asker, flower = Asker(world), flowers(1)[0]
    for n, size in enumerate((128 * 1024, 128 * 1024 + 1)):
        request_id = f"q-{n}"
        asker.flowers[request_id] = flower
        asker.send(json.dumps({"request_id": request_id, **dict(zip(FEATURES, flower))}).ljust(size))
    asker.finish()
    fits, does_not = (asker.ends[f"q-{n}"][0] for n in range(2))
    must(fits["outcome"] == "answered", f"128 KB: {fits}")
    must(does_not.get("error", {}).get("code") == "too_large", f"one more: {does_not}")
    return asker.tally(), "answered; refused before it was sent", asker.counters


@alone("10,000 malformed messages of 20 kinds between good ones")
def _(world):
    count, window = 10_000, 64
    asker = Asker(world)
    good = threading.Thread(target=asker.ask, args=(flowers(300), 10), daemon=True)
    good.start()
    sent, refused, patience = 0, 0, 5
    with Device("other", folder=world.devices / "other") as device:
        device.listening()
        # A refusal does not always say to which message: ask again for as many as are missing.
        while refused < count:
            while sent - refused < window and sent < count:
                device.send(MALFORMED[sent % len(MALFORMED)])
                sent += 1
            try:
                message = device.inbox.get(timeout=3)
                must("error" in message, f"not refused: {message}")
                refused += 1
            except queue.Empty:
                patience -= 1
                must(patience, f"{count - refused} messages were neither refused nor answered")
                for n in range(sent - refused):
                    device.send(MALFORMED[n % len(MALFORMED)])
    good.join()
    asker.finish()
    tally = asker.tally()
    seen = f"{refused} refused beside {tally['answered']} answers"
    return tally + Counter(tried=refused, refused=refused), seen, asker.counters


def load(world, devices, rate, seconds, watch=lambda pid: None, timeout=None):
    command = [CLIENT, "--dir", world.devices, "load", "--devices", str(devices), "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        watch(process.pid)
        out, _ = process.communicate(timeout=timeout or seconds + 120)
    finally:
        process.kill()
    result = json.loads(out)
    counters = result["counters"]
    ended = counters["answered"] + counters["refused"] + counters["failed"]
    tally = Counter(
        tried=counters["asked"], answered=counters["answered"], refused=counters["refused"], failed=counters["failed"],
        lost=counters["asked"] - ended,
    )  # fmt: skip
    return tally, result


def pace(result):
    ms = result["ms"]
    return f"{result['answers_a_second']:.0f} answers a second, p50 {ms['p50']:.0f} ms, p99 {ms['p99']:.0f} ms"


@alone("50 devices at once")
def _(world):
    tally, result = load(world, 50, 100, 10)
    return tally, pace(result), result["counters"]


@alone("2,000 questions as fast as they are taken, 20 devices")
def _(world):
    tally, result = load(world, 20, 2000, 1)
    must(tally["answered"] == 2000, f"{tally['answered']} of 2,000 answered")
    return tally, pace(result), result["counters"]


@alone("steady load, memory flat")
def _(world):
    # Long: 10⁵ questions after the first third.
    seconds, rate = (1800, 90) if os.environ.get("SOAK") else (60, 50)
    grown = {}

    def watch(pid):
        began, early = time.monotonic(), None
        while time.monotonic() - began < seconds - 2:
            time.sleep(1)
            functions = {each: memory_of(each) for each in world.functions()}
            now = {"client": memory_of(pid), **functions}
            # From a third of the time on: before it, caches and pools fill.
            if time.monotonic() - began > seconds / 3:
                early = early or now
                grown.update({name: mb - early[name] for name, mb in now.items() if name in early})

    tally, result = load(world, 5, rate, seconds, watch)
    must(len(grown) >= 2, "no container lived through it")
    client = grown.pop("client")
    seen = f"{seconds} s, client {client:+.2f} MB, function {max(grown.values()):+.2f} MB"
    must(max(client, *grown.values()) <= 1.0, f"memory grows: {seen}")
    return tally, seen, result["counters"]


# --- dead letters -----------------------------------------------------------


@alone("answers that cannot be published become dead letters, and are sent when asked again")
def _(world):
    cloud, count = world.cloud, 3
    cloud.must("redrive")  # what the other cases have left
    world.gateway.closed.add("iot")
    asker = Asker(world, deadline=8)
    began = time.monotonic()
    try:
        asker.ask(flowers(count), 10)
        asker.finish()  # it has given up by now
        asked = count + asker.counters["retried"]  # each asking is a message of its own
        while (letters := cloud.must("dlq").count(f"{STACK}-asker  q-")) < asked:
            must(time.monotonic() - began < 240, f"{letters} of {asked} dead letters after 240 s")
            time.sleep(2)
    finally:
        world.gateway.closed.clear()
    with Device("asker", folder=world.devices / "asker") as device:
        device.listening()
        cloud.must("redrive")
        heard = Counter()
        try:
            while True:
                heard[device.inbox.get(timeout=2)["request_id"]] += 1
        except queue.Empty:
            pass
    must("no dead letters" in cloud.must("dlq"), "some are left")
    must(heard.total() == letters and len(heard) == count, f"{letters} dead letters, answered {dict(heard)}")
    return (
        asker.tally(),
        f"{letters} dead letters after three tries each, all answered when asked again",
        asker.counters,
    )


def line(name, columns):
    print(f"{name[:57]:<58}" + "".join(f"{column:>9}" for column in columns), flush=True)


def main():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cloud is stopped then too
    wanted = os.environ.get("CASE", "").lower()
    cases = [(name, run) for name, run in CASES if wanted in name.lower()]
    if not cases:
        sys.exit(f"no case is called {wanted!r}: " + ", ".join(name for name, _ in CASES))
    results, bad = [], 0
    fields = ("tried", "answered", "refused", "failed", "lost", "wrong", "duplicates_shown")
    print(f"faults: {len(cases)} cases; the local cloud starts", flush=True)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder, World(Path(folder)) as world:
        line("case", ["tried", "answered", "refused", "failed", "lost", "wrong", "twice", "seconds"])
        for name, run in cases:
            began = time.monotonic()
            try:
                tally, seen, counters = run(world)
                ok = not (tally["lost"] or tally["wrong"] or tally["duplicates_shown"])
            except (Fault, subprocess.TimeoutExpired, AssertionError) as error:
                tally, seen, counters, ok = Counter(), f"{type(error).__name__}: {error}"[:500], {}, False
            finally:
                world.gateway.closed.clear()
                world.wire.swallow = None
            bad += not ok
            seconds = time.monotonic() - began
            line(name, [*(tally[field] for field in fields), f"{seconds:.1f}"])
            print(f"    {'' if ok else 'NOT SO: '}{seen}", flush=True)
            results.append({"name": name, **{field: tally[field] for field in fields}, "ok": ok, "seen": seen,
                            "seconds": round(seconds, 1), "counters": counters})  # fmt: skip
    target = ROOT / "target/faults.json"
    if not wanted:
        target.write_text(json.dumps({"cases": results}, indent=1) + "\n")
    print(f"{len(results) - bad} passed, {bad} failed")
    return 1 if bad else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nfaults: stopped, and the local cloud with it", file=sys.stderr)
        sys.exit(130)
