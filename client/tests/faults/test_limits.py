"""What is forbidden and what is too much; and answers that cannot be sent for a long time."""

import json
import math
import os
import queue
import re
import shutil
import ssl
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
from clients import BUCKET, CLIENT, LABEL, STACK, Device, sha256
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from driver import Asker, request, rows
from local_cloud import size, wait_for
from stand_in import signed

ROW = next(rows())
GOOD, FIRST = request("r", ROW).encode(), json.dumps(ROW[0]).encode()
MALFORMED = [
    b"", b"\xff\xfe", b"hello", b"{", b"[]", b"null", b"1e308", b'"text"', b"{}", b'{"request_id": 1}',
    b'{"request_id": "r"}', b'{"request_id": "r", "instances": 1}', b'{"request_id": "r", "instances": [{}]}',
    *(GOOD.replace(FIRST, bad, 1) for bad in (b'"%s"' % FIRST, b"null", b"NaN", b"1e308", b"-" + FIRST)),
    request("r", ROW[:-1]).encode(), request("r" * 200, ROW).encode(),
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def unsent(world):
    """A client whose answers cannot be published, and the path that is closed for it. Its requests become
    dead letters while the other cases run."""
    world.device("unsent")
    path = f"/topics/{STACK}/response/{STACK}-unsent"
    world.gateway.close(path)
    asker = Asker(world, "unsent", deadline=size(3, 8))
    for n, row in zip(range(3), rows()):
        asker.ask(f"q-{n}", row)
    yield asker, path
    asker.kill()


# --- forbidden --------------------------------------------------------------


def predict(devices, name):
    """A client that sends one request as this device."""
    command = [CLIENT, "--dir", devices, "predict", "--device", name, "--", *map(str, ROW)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module", autouse=True)
def strangers(world):
    """{name: a client that tries to connect with a certificate that will not do}. All else in its folder is right: a
    client was answered from there before. They try for ten seconds, and the other cases run meanwhile."""
    names = ("unregistered", "deactivated", "foreign")
    for name in names:
        world.device(name)
    for asker in [predict(world.devices, name) for name in names]:
        out, err = asker.communicate(timeout=60)
        assert LABEL in out, err

    key = ec.generate_private_key(ec.SECP256R1())
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    folder = world.devices / "unregistered"
    (folder / "cert.pem").write_bytes(signed(key, "stranger", (key, "stranger"), False))
    (folder / "key.pem").write_bytes(key.private_bytes(*encoding))

    iot = world.cloud.client("iot")
    [arn] = iot.list_thing_principals(thingName=f"{STACK}-deactivated")["principals"]
    iot.update_certificate(certificateId=arn.partition(":cert/")[2], newStatus="INACTIVE")

    # A device of another stack, with a certificate that is good there.
    cloud, stack = world.cloud, "elsewhere"
    cloud.must("bucket", STACK=stack)
    cloud.client("s3").put_object(Bucket=BUCKET.replace(STACK, stack, 1), Key="models/current.json", Body=world.good)
    cloud.must("deploy", STACK=stack)
    theirs = world.device("foreign", folder=world.folder / stack, stack=stack)
    with Device("foreign", folder=theirs, stack=stack) as device:
        device.listening()
    for name in ("cert.pem", "key.pem"):
        shutil.copy(theirs / name, world.devices / "foreign" / name)

    strangers = {name: predict(world.devices, name) for name in names}
    yield strangers
    for stranger in strangers.values():
        stranger.kill()
        stranger.communicate()


def refused(case, strangers, name, in_the_brokers_log=""):
    """As AWS does it, the broker closes the connection and says nothing; its log has the reason."""
    out, err = strangers[name].communicate(timeout=60)
    tried = f"error: no connection to 127.0.0.1:{case.world.cloud.mqtt} as {STACK}-{name} in 10s, last: "
    assert (strangers[name].returncode, out) == (1, "") and err.startswith(tried), out + err
    reason = err.removeprefix(tried).partition(";")[0]
    assert re.search("peer closed connection|closed by peer", reason), err
    assert "`make device` renews a certificate" in err, err
    log = (case.world.cloud.dir / "ministack.log").read_text()
    assert in_the_brokers_log in log, f"the broker's log does not have {in_the_brokers_log!r}"
    case.count(Counter(tried=1, refused=1))
    case.saw(reason)


def test_device_publishes_on_the_topic_of_another(case):
    topic, world = f"{STACK}/request/{STACK}-asker", case.world
    with Device("asker", folder=world.devices / "asker") as asker:
        asker.listening()
        with Device("other", folder=world.devices / "other") as device:
            device.listening()
            device.client.publish(topic, request("forged", ROW), qos=1)
            assert device._events.get(timeout=10) is False, "the broker kept the connection"
        # The same from one who may: whatever is published there, the asker hears of it.
        world.cloud.client("iot-data").publish(topic=topic, qos=1, payload=request("allowed", ROW))
        heard = [asker.inbox.get(timeout=10)["request_id"]]
        try:
            heard.append(asker.inbox.get(timeout=2)["request_id"])
        except queue.Empty:
            pass
    assert heard == ["allowed"]
    case.count(Counter(tried=1, refused=1))
    case.saw("the broker closes the connection, and nobody is answered")


def test_device_subscribes_to_all_topics(case):
    with Device("other", folder=case.world.devices / "other") as device:
        assert device.listening() and not device.subscribe("#")
    case.count(Counter(tried=1, refused=1))
    case.saw("the broker refuses, or closes the connection")


# --- too much ---------------------------------------------------------------


def test_128_KB_exactly_and_a_byte_more(case):
    with case.client() as asker:
        for name, length in (("fits", 128 * 1024), ("too-large", 128 * 1024 + 1)):
            asker.ask(name, ROW, length)
    fits, too_large = asker.ends["fits"][0], asker.ends["too-large"][0]
    assert fits["outcome"] == "answered", f"128 KB: {fits}"
    assert (too_large["outcome"], too_large["error"]["code"]) == ("failed", "too_large"), f"one more: {too_large}"
    case.saw("answered; refused before it was sent")


def test_malformed_messages_of_20_kinds_between_good_ones(case):
    count, window = size(1000, 10_000), 64
    with case.asking(300, rate=10) as asker, Device("other", folder=case.world.devices / "other") as device:
        device.listening()
        sent, refused, patience = 0, 0, 5
        # A refusal does not always have its request's id: send as many again as are missing.
        while refused < count:
            while sent - refused < window and sent < count:
                device.send(MALFORMED[sent % len(MALFORMED)])
                sent += 1
            try:
                message = device.inbox.get(timeout=3)
                assert "error" in message, f"not refused: {message}"
                refused += 1
            except queue.Empty:
                patience -= 1
                assert patience, f"{count - refused} messages were neither refused nor answered"
                for n in range(sent - refused):
                    device.send(MALFORMED[n % len(MALFORMED)])
    case.saw(f"{refused} refused beside {case.row['answered']} answers")
    case.count(Counter(tried=refused, refused=refused), asker.counters)


def test_unregistered_certificate(case, strangers):
    refused(case, strangers, "unregistered")  # it fails in TLS already, of which nothing is logged


def test_deactivated_certificate(case, strangers):
    certificate = ssl.PEM_cert_to_DER_cert((case.world.devices / "deactivated/cert.pem").read_text())
    refused(case, strangers, "deactivated", f"refusing client certificate {sha256(certificate)} (status 'INACTIVE')")


def test_certificate_of_another_stack(case, strangers):
    refused(case, strangers, "foreign", f"CONNECT from '{STACK}-foreign' refused")


def load(case, devices, rate, seconds, watch=lambda pid: None, most_unasked=0.05):
    """Requests of many devices at once; how fast they were answered. At most a share of them is not sent in time."""
    command = [CLIENT, "--dir", case.world.devices, "load", "--devices", str(devices), "--rate", str(rate)]
    command += ["--seconds", str(seconds), "--json", "--pace", "1000"]  # the local cloud has no limit
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        watch(process.pid)
        out, _ = process.communicate(timeout=seconds + 120)
    finally:
        process.kill()
    result = json.loads(out)
    counters, ms = Counter(result["counters"]), result["ms"]
    ended = counters["answered"] + counters["refused"] + counters["failed"]
    case.count(counters + Counter(tried=counters["asked"], lost=counters["asked"] - ended), counters)
    # It ends on time, also on a busy machine, and counts what it did not send.
    count, unasked = rate * seconds, result["unasked"]
    assert counters["answered"] + unasked == count and unasked <= count * most_unasked, (unasked, counters)
    return f"{result['answers_a_second']:.0f} answers a second, p50 {ms['p50']:.0f} ms, p99 {ms['p99']:.0f} ms"


@pytest.fixture(scope="module")
def devices(world):
    """How many there are."""
    count = size(20, 50)
    world.device("load", "--count", str(count))
    return count


def test_many_devices_at_once(case, devices):
    case.saw(f"{devices} devices, {load(case, devices, 50, size(6, 20))}")


def test_more_requests_than_20_devices_can_send(case, devices):
    case.saw(load(case, 20, 2000, 1, most_unasked=0.9))


# --- answers that cannot be sent ---------------------------------------------


def test_answers_that_cannot_be_published_become_dead_letters_and_are_redriven(case, unsent):
    cloud, (asker, path) = case.world.cloud, unsent
    asker.finish()  # it has given up by now
    assert asker.counters["failed"] == 3, asker.counters
    asked = 3 + asker.counters["retried"]  # each asking is a message of its own
    letters = lambda: cloud.must("dlq").count(f"{STACK}-unsent  q-")  # noqa: E731
    wait_for(lambda: letters() >= asked, 240, f"{asked} dead letters")
    case.world.gateway.reopen(path)
    with Device("unsent", folder=case.world.devices / "unsent") as device:
        device.listening()
        cloud.must("redrive")
        heard = Counter(device.inbox.get(timeout=10)["request_id"] for _ in range(asked))
        with pytest.raises(queue.Empty):
            heard[device.inbox.get(timeout=1)["request_id"]] += 1
    assert len(heard) == 3, f"{asked} dead letters, answered {dict(heard)}"
    assert "no dead letters" in cloud.must("dlq"), "some are left"
    case.count(asker.tally(), asker.counters)
    case.saw(f"{asked} dead letters, all answered after `make redrive`")


# --- for long ----------------------------------------------------------------


def memory_of(pid):
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return math.nan


def test_steady_load_and_the_memory_stays_flat(case, devices):
    # SOAK is long: 100,000 requests after the first third.
    seconds, rate = (1800, 90) if os.environ.get("SOAK") else size((12, 50), (60, 50))
    grown = {}

    def watch(pid):
        began, early = time.monotonic(), None
        while time.monotonic() - began < seconds - 2:
            time.sleep(1)
            now = {"client": memory_of(pid)} | {each: memory_of(each) for each in case.world.functions()}
            # From a third of the time on: before it, caches and pools fill.
            if time.monotonic() - began > seconds / 3:
                early = early or now
                grown.update({name: mb - early[name] for name, mb in now.items() if name in early})

    pace = load(case, 5, rate, seconds, watch)
    assert len(grown) >= 2, "no container lived through it"
    client = grown.pop("client")
    case.saw(f"{seconds} s, client {client:+.2f} MB, function {max(grown.values()):+.2f} MB; {pace}")
    assert max(client, *grown.values()) <= 1.0, f"memory grows: {case.row['seen']}"
