"""Who breaks things and who asks meanwhile: a cloud with all that can be broken in it, and the client."""

import itertools
import json
import math
import os
import signal
import subprocess
import threading
import time
import zipfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from clients import CLIENT, NAMES, STACK, TARGET, ZIP, expected, iris, zipped
from local_cloud import size, wait_for
from proxies import Gateway, Wire

COUNTS = ("tried", "answered", "refused", "failed", "lost", "wrong", "twice")
BOOTSTRAP = """#!/bin/sh
# Fails to start while {folder}/no-start is there; otherwise the real function, which reaches the cloud by our gateway.
test ! -e {folder}/no-start || {{ echo no start >> {folder}/no-start; exit 1; }}
export AWS_ENDPOINT_URL=http://127.0.0.1:{port} MODEL_TTL={ttl}
exec "$(dirname "$0")/function"
"""


class World:
    """The stack in a cloud, and all that can be broken in it."""

    def __init__(self, cloud, model):
        self.cloud, self.good, self.folder = cloud, model, cloud.dir.parent
        self.devices = self.folder / "devices"
        self.gateway, self.wire = Gateway(cloud.gateway), Wire(cloud.mqtt)

    def __enter__(self):
        # A small test does not wait for the template's five seconds to see the model refreshed.
        bootstrap = BOOTSTRAP.format(folder=self.folder, port=self.gateway.port, ttl=size(1, 5))
        program = zipfile.ZipFile(ZIP).read("bootstrap")
        archive = zipped(self.folder / "function.zip", bootstrap=bootstrap, function=program)
        self.cloud.must("deploy", ZIP=archive)
        self.deployed = time.monotonic()
        for name in ("asker", "other"):
            self.device(name)
        return self

    def __exit__(self, *_):
        self.wire.close()
        self.gateway.server.shutdown()
        self.signal(signal.SIGKILL)  # the cloud waits for calls that still run

    def device(self, *arguments, folder=None, stack=STACK):
        """The folder of a new device."""
        folder = folder or self.devices
        process = self.cloud.deployer("device", *arguments, "--dir", str(folder), stack=stack)
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"device {arguments}: {out}"
        return folder / arguments[0]

    def functions(self):
        """Process ids of the containers."""
        pids = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "exe").startswith(f"{self.cloud.dir}/"):
                    pids.append(int(process.name))
            except OSError:
                continue
        return pids

    def signal(self, number):
        """How many containers got it."""
        pids = self.functions()
        for pid in pids:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return len(pids)

    def pid(self):
        return json.loads((self.cloud.dir / "pid").read_text())["pid"]


class Asker:
    """The client, in a process of its own: takes requests on its standard input, one line each, and reports how
    each ended."""

    def __init__(self, world, device="asker", port=None, deadline=15, basic_ingest=False):
        self.rows, self.ends, self.counters = {}, {}, None
        command = [CLIENT, "--dir", world.devices, "predict", "--requests", "-", "--json", "--device", device]
        command += ["--port", str(port or world.cloud.mqtt), "--deadline", str(deadline)]
        command += ["--basic-ingest"] * basic_ingest
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(command, **pipes, text=True)
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            end = json.loads(line)
            if "counters" in end:
                self.counters = end["counters"]
            else:
                self.ends.setdefault(end["request_id"], []).append({**end, "at": time.monotonic()})

    def ask(self, request_id, row, length=0):
        """One request, padded with spaces to a length."""
        self.rows[request_id] = row
        try:
            self.process.stdin.write(request(request_id, row).ljust(length) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # the client has ended: `finish` says why

    def ask_on(self, count, rate, over):
        """So many requests at a rate, and on until it is over."""
        began = time.monotonic()
        for n, row in enumerate(rows()):
            if n >= count and over.is_set():
                return
            time.sleep(max(0, began + n / rate - time.monotonic()))
            self.ask(f"q-{n}", row)

    def finish(self, seconds=60):
        """Wait until every request has ended."""
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass
        self.process.wait(seconds)
        self.reader.join(10)
        assert self.counters, f"the client ended with {self.process.returncode}: {self.process.stderr.read()}"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def tally(self):
        counts = Counter()
        for request_id, row in self.rows.items():
            ends = self.ends.get(request_id, [])
            counts["tried"] += 1
            counts["lost"] += not ends
            counts["twice"] += max(0, len(ends) - 1)
            for end in ends[:1]:
                counts[end["outcome"]] += 1
                counts["wrong"] += end["outcome"] == "answered" and not right(end["answer"], row)
        return counts

    def refusals(self):
        """{code: how many requests}"""
        return Counter(ends[0]["error"]["code"] for ends in self.ends.values() if ends[0]["outcome"] == "refused")

    def answered(self, since=0, until=math.inf):
        """When requests were answered, in order of time."""
        ends = [ends[0] for ends in list(self.ends.values())]
        return sorted(end["at"] for end in ends if end["outcome"] == "answered" and since < end["at"] < until)


class Case:
    """A row of the table: how the requests ended, and what showed that the fault happened."""

    def __init__(self, world, name):
        self.world = world
        self.row = {"name": name, **dict.fromkeys(COUNTS, 0), "seen": "", "counters": {}}

    def count(self, tally, counters=()):
        self.row |= {name: self.row[name] + tally[name] for name in COUNTS}
        self.row["counters"] = dict(counters)
        for name in ("lost", "wrong", "twice"):
            assert not self.row[name], f"{self.row[name]} of {self.row['tried']} requests {name}"

    def saw(self, text):
        self.row["seen"] = text

    @contextmanager
    def client(self, **settings):
        """A client that takes requests one by one; afterwards, each of them has ended."""
        asker = Asker(self.world, **settings)
        try:
            yield asker
            asker.finish()
        finally:
            asker.kill()
        self.count(asker.tally(), asker.counters)

    @contextmanager
    def asking(self, full=120, rate=30, wire=False, **settings):
        """Requests at a rate while something is broken; afterwards, each of them has a reply. So many in full size,
        and in any size enough to be asked before, meanwhile and after."""
        with self.client(port=self.world.wire.port if wire else None, deadline=30, **settings) as asker:
            over = threading.Event()
            feed = threading.Thread(target=asker.ask_on, args=(size(30, full), rate, over), daemon=True)
            feed.start()
            try:
                wait_for(asker.answered, 20, "the first answer")
                yield asker
                time.sleep(0.5)
            finally:
                over.set()
                feed.join()
        assert not self.row["failed"], f"{self.row['failed']} of {self.row['tried']} requests have no reply"


def retried(asker):
    """What showed that calls failed: their requests were retried."""
    assert asker.counters["retried"], "no request was retried"
    return f"retried {asker.counters['retried']}"


def reconnected(asker, at_least=1):
    """What showed that the connection broke."""
    counters = asker.counters
    assert counters["reconnected"] >= at_least, f"reconnected only {counters['reconnected']} times"
    return f"reconnected {counters['reconnected']}, retried {counters['retried']}"


def request(request_id, row):
    return json.dumps({"request_id": request_id, **dict(zip(NAMES, row))})


def right(answer, row):
    p = answer.get("probabilities")
    return p == expected(row) and answer.get(TARGET) == max(p, key=p.get)


def rows():
    """Fisher's, round and round."""
    return itertools.cycle(row for row, _ in iris())
