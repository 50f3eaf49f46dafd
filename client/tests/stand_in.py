"""A stand-in for the cloud: an MQTT broker that answers every request itself, as fast as it comes.

The local cloud answers a few hundred requests a second on a laptop; whether the page bears more can only be seen
with something that gives more. It speaks as much of MQTT 3.1.1 as one device needs, over TLS in both directions, and
computes with scikit-learn's weights. A test may make it slow, change its model's name, lose a message with its
acknowledgement, acknowledge late or never, stop answering, refuse subscriptions, enforce AWS's limits, or close the
connection. It counts the messages that AWS would charge for
(https://aws.amazon.com/iot-core/pricing/additional-details/, 2026-11).
"""

import asyncio
import json
import ssl
import threading
import time
from collections import deque
from datetime import datetime, timedelta, timezone
from ipaddress import ip_address

from clients import NAMES, REFERENCE, TARGET, iris, probabilities
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, PING, DISCONNECT = 1, 3, 4, 8, 12, 14
PUBLISHES_A_SECOND = 100  # on a connection, both directions together; AWS discards what exceeds that


class StandIn:
    """Listens on a free port of 127.0.0.1 from `with` on; `folder/live` is a device that may connect."""

    def __init__(self, folder, file=None):
        self.folder, self.model, self.delay = folder, "a" * 64, 0.0
        self.file = file or IRIS  # what it answers by; a test may put another in its place, with another `model`
        self.lost = set()  # of the messages that arrive, by number from 1
        self.grants = True  # what is subscribed to
        self.acknowledges = lambda number: 0  # after so many seconds, by the message's number; None: never
        self.answers = None  # only so many
        self.aws = False  # keeps AWS's limits
        self.breaks = False  # the first connection with its SUBACK, and is slow to grant the second
        self.arrived, self.connections, self.disconnected = 0, 0, False
        self.metered, self.discarded, self.too_soon, self.too_early = 0, 0, 0, 0
        self._open, self._ids, self._connected = {}, {}, {}
        self._loop = asyncio.new_event_loop()

    def __enter__(self):
        device = self.folder / "live"
        device.mkdir(parents=True)
        server = certificates(device)
        started = asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=server)
        self._server = self._loop.run_until_complete(started)
        port = self._server.sockets[0].getsockname()[1]
        endpoint = {"host": "127.0.0.1", "port": port, "client_id": "page-live", "stack": "page"}
        (device / "endpoint.json").write_text(json.dumps(endpoint))
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self):
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        await asyncio.gather(*self._open.values())

    def disconnect(self):
        """End all connections, without a word."""
        for writer in list(self._open):
            self._loop.call_soon_threadsafe(writer.transport.abort)

    async def _connection(self, reader, writer):
        self._open[writer] = asyncio.current_task()
        link = Link(writer, self.aws)
        try:
            while True:
                kind, body = await packet(reader)
                if kind == CONNECT:
                    self.metered += 1
                    if not self._welcome(body[12 : 12 + int.from_bytes(body[10:12], "big")], writer):
                        return
                    writer.write(b"\x20\x02\x00\x00")
                elif kind == SUBSCRIBE:
                    self.metered += 1
                    link.qos = min(body[-1], 1)
                    granted = b"\x90\x03" + body[:2] + (bytes([link.qos]) if self.grants else b"\x80")
                    if self.breaks and self.connections == 1:
                        granted += b"\x40\x02\x7f\xff"  # acknowledges what was never sent
                    if self.breaks and self.connections == 2:
                        await asyncio.sleep(0.5)
                        self.too_early = len(reader._buffer)
                    writer.write(granted)
                elif kind == PUBACK:
                    self.metered += 1
                elif kind == PING:
                    writer.write(b"\xd0\x00")
                elif kind == DISCONNECT:
                    self.disconnected = True
                    return
                elif kind == PUBLISH:
                    end = 2 + int.from_bytes(body[:2], "big")
                    topic, number, payload = body[2:end], body[end : end + 2], body[end + 2 :]
                    if link.is_full():
                        self.discarded += 1
                        continue
                    ingest, _, topic = topic.rpartition(b"page_rule/")
                    assert ingest in (b"", b"$aws/rules/"), ingest
                    self.metered += not ingest
                    describes = b'"describe"' in payload  # neither counted nor slow: it comes before the requests
                    self.arrived += not describes
                    if not describes and self.arrived in self.lost:
                        continue
                    late = self.acknowledges(self.arrived)
                    if late:
                        self._loop.call_later(late, writer.write, b"\x40\x02" + number)
                    elif late is not None:
                        writer.write(b"\x40\x02" + number)
                    if self.answers is not None and self.arrived > self.answers:
                        continue
                    self.metered += 1  # what the function publishes
                    reply = topic.replace(b"/request/", b"/response/"), self._answer(payload)
                    if self.delay and not describes:
                        self._loop.call_later(self.delay, self._deliver, link, *reply)
                    else:
                        self._deliver(link, *reply)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            del self._open[writer]
            writer.close()

    def _welcome(self, client_id, writer):
        """Whether one may connect now; who was connected under the same id is thrown out."""
        now, before = time.monotonic(), self._connected.get(client_id, 0)
        self._connected[client_id] = now
        if self.aws and now - before < 1:
            self.too_soon += 1
            return False
        self.connections += 1
        if (other := self._ids.get(client_id)) in self._open:
            other.transport.abort()
        self._ids[client_id] = writer
        return True

    def _deliver(self, link, topic, payload):
        if link.is_full():
            self.discarded += 1
            return
        self.metered += 1
        link.writer.write(framed(topic, payload, link.qos))

    def _answer(self, payload):
        request, file = json.loads(payload), self.file
        head = {"request_id": request["request_id"], "model": self.model}
        if request.get("describe"):
            return json.dumps(head | {name: file[name] for name in ("target", "features", "classes")}).encode()
        instances = request.get("instances", [request])
        try:
            predictions = [predicted(file, instance) for instance in instances]
        except KeyError as error:
            refusal = {"code": "missing_field", "message": f"`{error.args[0]}` is missing"}
        except ValueError as error:
            refusal = {"code": "out_of_range", "message": str(error)}
        else:
            result = {"predictions": predictions} if "instances" in request else predictions[0]
            return json.dumps(head | result | {"cold_start": False, "handler_us": 1}).encode()
        return json.dumps({"request_id": request["request_id"], "error": refusal}).encode()


class Link:
    """A connection: what it is subscribed by, and when messages went over it, either way."""

    def __init__(self, writer, limited):
        self.writer, self.limited, self.qos, self._times = writer, limited, 0, deque()

    def is_full(self):
        """Whether one more is above AWS's limit; if not, it is counted."""
        now = time.monotonic()
        while self._times and now - self._times[0] >= 1:
            self._times.popleft()
        if self.limited and len(self._times) >= PUBLISHES_A_SECOND:
            return True
        self._times.append(now)
        return False


def predicted(file, instance):
    features = file["features"]
    row = [instance[feature["name"]] for feature in features]
    for x, feature in zip(row, features):
        if not feature["accept"][0] <= x <= feature["accept"][1]:
            raise ValueError(f"`{feature['name']}` is out of range")
    p = dict(zip(file["classes"], probabilities(file["weights"], file["intercepts"], row)))
    seen = all(feature["min"] <= x <= feature["max"] for x, feature in zip(row, features))
    return {file["target"]: max(p, key=p.get), "probabilities": p, "in_distribution": seen}


def reference():
    """scikit-learn's weights as a model file has them."""
    columns = list(zip(*(row for row, _ in iris())))
    features = [
        {"name": name, "unit": "cm", "min": min(column), "max": max(column), "accept": [0, 100]}
        for name, column in zip(NAMES, columns)
    ]
    weights, intercepts = REFERENCE["weights_class_by_feature"], REFERENCE["intercepts"]
    classes = REFERENCE["classes"]
    return {"target": TARGET, "features": features, "classes": classes, "weights": weights, "intercepts": intercepts}


IRIS = reference()


async def packet(reader):
    """(type, body) of the next one."""
    kind = (await reader.readexactly(1))[0] >> 4
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return kind, await reader.readexactly(length)


def framed(topic, payload, qos):
    """A message at QoS 0 or 1; the packet id is always the same."""
    body, length = len(topic).to_bytes(2, "big") + topic + b"\x00\x01" * qos + payload, b""
    rest = len(body)
    while rest > 0x7F:
        length += bytes([rest & 0x7F | 0x80])
        rest >>= 7
    return bytes([0x30 | qos << 1]) + length + bytes([rest]) + body


def certificates(device):
    """An authority, a certificate for the broker and one for the device; the TLS context of the broker."""
    authority = key, name = ec.generate_private_key(ec.SECP256R1()), "stand-in"
    root = signed(key, name, authority, True)
    (device / "ca.pem").write_bytes(root)
    for who in ("device", "broker"):
        key = ec.generate_private_key(ec.SECP256R1())
        folder = device if who == "device" else device.parent
        (folder / "cert.pem").write_bytes(signed(key, who, authority, False))
        (folder / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(device.parent / "cert.pem", device.parent / "key.pem")
    context.load_verify_locations(device / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def signed(key, name, authority, ca):
    def named(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    issuer, issuer_name = authority
    now = datetime.now(timezone.utc)
    builder = x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer_name))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = builder.add_extension(address, critical=False).sign(issuer, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)
