#!/usr/bin/env python3
"""The local cloud: MiniStack on this machine, started and stopped.

    local.py start [--quiet]   start it in the background and wait until it answers; quiet: or say nothing when it runs
    local.py stop              let it save its state and end it
    local.py run               be it, in the foreground

MiniStack (PyPI `ministack`) answers this workshop's AWS calls from one Python process: S3, Lambda (it runs the real
`bootstrap`), IoT with its MQTT broker, CloudFormation, IAM and more. ministack_changes.py makes it fit for a laptop.

This is a laptop's tool, not a server. It listens on 127.0.0.1 only and refuses web pages from elsewhere, but every
program on this machine may use the root key `test` (any secret will do) and may empty it: `POST /_ministack/reset`.

LOCAL_DIR holds all that it writes: `state/` outlives a restart and a kill -9, `tmp/` does not.
"""

# Every make target asks `start --quiet`: what only the real start needs is imported there.
import fcntl
import json
import os
import signal
import socket
import sys
import time

DEFAULTS = {
    "GATEWAY_PORT": "4566",
    "IOT_MTLS_PORT": "8883",
    # How long a `bootstrap` may idle. AWS does not say how long (minutes); here it is a little more than
    # the shortest schedule, so that a workshop sees both: a cold start after a pause, and none when kept warm.
    "LAMBDA_WARM_TTL_SECONDS": "75",
    # How many calls may run at once, each in a process of its own. AWS gives an account 1,000, a new one fewer;
    # this is what a laptop bears. One call more is throttled, and one from a rule waits for its turn.
    "LAMBDA_ACCOUNT_CONCURRENCY": "64",
    "LOCAL_DIR": os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "target", "local"),
    "AWS_REGION": "us-east-1",  # for what no request names a region
}
LIMITS = {
    "GATEWAY_PORT": 65535, "IOT_MTLS_PORT": 65535, "LAMBDA_WARM_TTL_SECONDS": 86400, "LAMBDA_ACCOUNT_CONCURRENCY": 1000,
}  # fmt: skip
BUNDLE = os.path.join(os.path.dirname(DEFAULTS["LOCAL_DIR"]), "bundle")
START_SECONDS, STOP_SECONDS, SAY_SECONDS, PATIENCE = 60, 40, 4, 5


class Settings:
    """What the environment asks for, checked."""

    def __init__(self, environment):
        self.values = {name: environment.get(name) or default for name, default in DEFAULTS.items()}
        for name, limit in LIMITS.items():
            text = self.values[name]
            if not (text.isascii() and text.isdigit() and 1 <= int(text) <= limit):
                sys.exit(f"{name}={text!r} will not do: it must be a whole number from 1 to {limit}.")
        self.ports = {name: int(self.values[name]) for name in ("GATEWAY_PORT", "IOT_MTLS_PORT")}
        self.gateway, self.mqtt = self.ports.values()
        if self.gateway == self.mqtt:
            sys.exit(f"GATEWAY_PORT and IOT_MTLS_PORT are both {self.mqtt}: give each its own.")
        self.dir = os.path.abspath(self.values["LOCAL_DIR"])
        self.state, self.tmp = os.path.join(self.dir, "state"), os.path.join(self.dir, "tmp")
        self.log, self.pid_file = os.path.join(self.dir, "ministack.log"), os.path.join(self.dir, "pid")

    def environment(self):
        """All that MiniStack gets to see, and every function with it: nothing of the user's own."""
        return self.values | {
            "LOCAL_DIR": self.dir, "BIND_HOST": "127.0.0.1", "MINISTACK_REGION": self.values["AWS_REGION"],
            "PATH": os.environ.get("PATH", os.defpath), "LANG": os.environ.get("LANG", "C.UTF-8"),
            "TMPDIR": self.tmp,  # functions are unpacked below it
            "HOME": self.tmp,  # without your ~/.aws
            "AUTH": "true",  # IAM and IoT policies count, as on AWS
            "PERSIST_STATE": "1", "STATE_DIR": self.state,
            "S3_PERSIST": "1", "S3_DATA_DIR": os.path.join(self.state, "s3"),
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gateway}",  # without it, functions would call the real AWS
            # Where a function from a bundle finds Rust's standard library: the Makefile says so.
            **({"LD_LIBRARY_PATH": os.environ.get("LD_LIBRARY_PATH", "")} if os.path.exists(BUNDLE) else {}),
        }  # fmt: skip


def start(settings, quiet=False):
    _lock = one_at_a_time(settings)  # held until this process ends
    deadline = time.monotonic() + PATIENCE
    while record := running(settings):
        answers = readiness(record["GATEWAY_PORT"])
        if answers or time.monotonic() >= deadline:
            return already_running(settings, record, answers, quiet)
        time.sleep(0.1)  # one that was just killed holds its file until the system has taken it down
    for name, port in settings.ports.items():
        while why_taken(port) and ending(settings) and time.monotonic() < deadline:
            time.sleep(0.1)
        if trouble := why_taken(port):
            ports = "make local GATEWAY_PORT=… IOT_MTLS_PORT=…"
            sys.exit(f"Port {port} ({name}) is not free: {trouble}. Choose others: {ports}")
    from subprocess import DEVNULL, Popen

    for number in (signal.SIGINT, signal.SIGTERM):  # a shell in the background would have us ignore the first
        signal.signal(number, signal.default_int_handler)
    began, child, trouble = time.monotonic(), None, "stopped"
    # However it ends, the shell then ends the functions that it started. A session of their own: Ctrl-C passes it by.
    command = ["/bin/sh", "-c", '"$0" "$1" run; kill -9 0', sys.executable, os.path.abspath(__file__)]
    try:
        with open(settings.log, "w") as log:
            child = Popen(
                command, env=settings.environment(), cwd=settings.dir, stdin=DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        trouble = wait_until_ready(settings, child)
    finally:
        if trouble and child and child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if trouble:
        with open(settings.log, errors="replace") as log:
            tail = "".join(log.readlines()[-15:])
        sys.exit(f"{tail}\nThe local cloud did not start: {trouble}. Its log: {settings.log}")
    print(f"local cloud: {describe(settings, settings.ports)}, up in {time.monotonic() - began:.1f} s")


def stop(settings):
    _lock = one_at_a_time(settings)
    record, began, seconds = running(settings), time.monotonic(), 0
    if not record:
        return print("local cloud: not running")
    os.kill(record["pid"], signal.SIGTERM)
    while running(settings):
        time.sleep(0.05)
        if time.monotonic() < began + seconds + SAY_SECONDS:
            continue
        seconds += SAY_SECONDS
        print(f"stopping: waiting for calls that still run ({seconds} s)", flush=True)
        if seconds >= STOP_SECONDS:
            print("killing it (what it knew is saved)", flush=True)
            os.kill(record["pid"], signal.SIGKILL)
    print("local cloud: stopped")


def describe(settings, record):
    pid = f", pid {record['pid']}" if "pid" in record else ""
    url, mqtt = f"http://127.0.0.1:{record['GATEWAY_PORT']}", f"127.0.0.1:{record['IOT_MTLS_PORT']}"
    return f"{url}, MQTT {mqtt}, log {settings.log}{pid}"


def one_at_a_time(settings):
    """The lock that start and stop take; the system drops it when the process ends."""
    os.makedirs(settings.dir, exist_ok=True)
    file = open(os.path.join(settings.dir, "lock"), "w")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def running(settings):
    """The pid and the ports of the MiniStack that uses LOCAL_DIR, or None.

    `run` keeps its pid file locked for as long as it lives. So a file that was left behind never passes for a running
    one, even if its pid is somebody else's by now.
    """
    try:
        with open(settings.pid_file, "r+") as file:
            try:
                os.lockf(file.fileno(), os.F_TEST, 0)
                return None
            except OSError:
                return json.loads(file.read() or "null")
    except FileNotFoundError:
        return None


def ending(settings):
    """Whether the last MiniStack of LOCAL_DIR is still there: one that was killed loses its lock before its ports."""
    try:
        with open(settings.pid_file) as file:
            os.kill(json.load(file)["pid"], 0)
        return True
    except (OSError, ValueError):  # no file, an empty one, no such process, somebody else's
        return False


def already_running(settings, record, answers, quiet):
    way_out = f"Stop it first: {os.path.basename(sys.executable)} {os.path.relpath(__file__)} stop"
    if settings.ports.items() - record.items():
        sys.exit(f"The local cloud already runs on other ports: {describe(settings, record)}. {way_out}")
    if not answers:
        sys.exit(f"The local cloud runs but does not answer: {describe(settings, record)}. {way_out}")
    if not quiet:
        print(f"local cloud: already running, {describe(settings, record)}")


def why_taken(port):
    with socket.socket() as caller, socket.socket() as server:
        # A bind finds a port that is taken, or not allowed. A call finds a program that
        # listens on all addresses: macOS lets us bind beside that one.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
            return "Address already in use" if caller.connect_ex(("127.0.0.1", port)) == 0 else None
        except OSError as error:
            return error.strerror


def wait_until_ready(settings, child):
    """None once the child is up, else what is wrong with it."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if child.poll() is not None:
            return "it ended"
        if answer := readiness(settings.gateway):
            mqtt = answer.get("iot_mtls")
            return None if mqtt == "listening" else f"MQTT on port {settings.mqtt} is {mqtt!r}"
        time.sleep(0.03)
    return f"not healthy after {START_SECONDS} s"


def readiness(port):
    """What MiniStack says about itself once both ports are served, else None."""
    try:
        # By hand: http.client would take longer to import than all the rest.
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"GET /_ministack/ready HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
        return json.loads(body) if head.split()[1] == b"200" else None
    except (OSError, ValueError, IndexError):
        return None


def run(settings):
    """Be MiniStack until a signal ends it."""
    import shutil

    os.umask(0o077)
    os.makedirs(settings.state, exist_ok=True)
    os.chmod(settings.state, 0o700)
    pid_file = open(settings.pid_file, "a+")  # open, hence locked, until we end
    try:
        os.lockf(pid_file.fileno(), os.F_TLOCK, 0)
    except OSError:
        sys.exit(f"Another one already uses {settings.dir}.")
    pid_file.truncate(0)
    print(json.dumps({"pid": os.getpid(), **settings.ports}), file=pid_file, flush=True)
    shutil.rmtree(settings.tmp, ignore_errors=True)  # unpacked functions of the last run
    os.mkdir(settings.tmp)
    forget_buckets(settings.state)
    clean = settings.environment()
    os.environ.clear()
    os.environ.update(clean)
    try:
        import ministack_changes
    except (ImportError, AttributeError) as error:
        sys.exit(f"{error}. `make setup` installs the MiniStack that deploy/ministack_changes.py was written for.")
    sys.argv = ["ministack"]  # MiniStack parses it
    ministack_changes.app.main()


def forget_buckets(state):
    """Of each folder that it finds, MiniStack makes a bucket. A stack's deletion leaves them behind, and a kill may have
    come before a new one was saved: what the saved state does not know is deleted."""
    import glob
    import shutil

    saved, before = (os.path.join(state, f"{name}.json") for name in ("together", "s3"))  # before: of older versions
    known = {}
    if os.path.exists(saved):
        with open(saved) as file:
            known = json.load(file).get("s3")
    elif os.path.exists(before):
        with open(before) as file:
            known = json.load(file)
    names = known["payload"]["buckets_meta"]["data"] if known else {}
    for folder in glob.glob(os.path.join(state, "s3", "[0-9]*", "*")):
        account, bucket = folder.split(os.sep)[-2:]
        if f"{account}\0{bucket!r}" not in names:
            shutil.rmtree(folder)


COMMANDS = {"start": start, "start --quiet": lambda each: start(each, quiet=True), "stop": stop, "run": run}

if __name__ == "__main__":
    try:
        command = COMMANDS.get(" ".join(sys.argv[1:]))
        if not command:
            sys.exit(f"{__doc__}\nSettings, from the environment: " + " ".join(f"{k}={v}" for k, v in DEFAULTS.items()))
        command(Settings(os.environ))
    except KeyboardInterrupt:
        sys.exit(130)
