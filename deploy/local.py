#!/usr/bin/env python3
"""The local cloud: MiniStack on this machine, started, stopped and mended.

MiniStack (PyPI `ministack`) answers this workshop's AWS calls from one Python
process: S3, Lambda (it runs the real `bootstrap`), IoT with its MQTT broker,
CloudFormation, IAM and more. The second half of this file changes, in memory,
what a laptop needs otherwise. Each change gives its reason, and ends the start
with a plain message when the installed MiniStack no longer fits it.

This is a laptop's tool, not a server. It listens on 127.0.0.1 only and refuses
web pages from elsewhere, but every program on this machine may use the root key
`test` (any secret will do) and may empty it: `POST /_ministack/reset`.

LOCAL_DIR holds all that it writes: `state/` outlives a restart and a kill -9,
`tmp/` does not. `ps` shows `local.py run` twice: the second process only waits
for the first to end, in whatever way, and then ends the functions it started.
"""

import signal

if __name__ == "__main__":  # until `main`: a Ctrl-C during the imports prints no traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import asyncio
import contextvars
import fcntl
import http.client
import inspect
import json
import os
import random
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

DEFAULTS = {
    "GATEWAY_PORT": "4566",
    "IOT_MTLS_PORT": "8883",
    "LOCAL_DIR": str(Path(__file__).resolve().parents[1] / "target" / "local"),
    # How long a `bootstrap` may idle. AWS does not say how long (minutes); here it is a little more than
    # the shortest schedule, so that a workshop sees both: a cold start after a pause, and none when kept warm.
    "LAMBDA_WARM_TTL_SECONDS": "75",
    # How many calls may run at once, each in a process of its own. AWS gives an account 1,000, a new one often 10;
    # this is what a laptop bears. One call more is throttled, and one from a rule waits for its turn.
    "LAMBDA_ACCOUNT_CONCURRENCY": "64",
    "AWS_REGION": "us-east-1",  # for what no request names a region
}
START_SECONDS, STOP_SECONDS = 60, 40
QUEUED_CALLS = 16  # of the calls at once, those from rules and other asynchronous ones
# What becomes of a stack that was under way when everything was killed; an update counts as rolled back.
BROKEN_OFF = {"CREATE_IN_PROGRESS": "CREATE_FAILED", "DELETE_IN_PROGRESS": "DELETE_FAILED"}
NOT_RUNNING = 3  # the exit code of `status`, as the Linux Standard Base has it
READY = "/_ministack/ready"


class Settings:
    """What the environment asks for, checked."""

    def __init__(self, environment):
        self.values = {name: environment.get(name) or default for name, default in DEFAULTS.items()}
        self.ports = {name: self._number(name, 65535) for name in ("GATEWAY_PORT", "IOT_MTLS_PORT")}
        self.gateway, self.mqtt = self.ports.values()
        self._number("LAMBDA_WARM_TTL_SECONDS", 86400)
        self._number("LAMBDA_ACCOUNT_CONCURRENCY", 1000)
        if self.gateway == self.mqtt:
            sys.exit(f"GATEWAY_PORT and IOT_MTLS_PORT are both {self.mqtt}: give each its own.")
        self.dir = Path(self.values["LOCAL_DIR"]).absolute()
        self.state, self.tmp = self.dir / "state", self.dir / "tmp"
        self.log, self.pid_file = self.dir / "ministack.log", self.dir / "pid"

    def _number(self, name, limit):
        text = self.values[name]
        if not (text.isascii() and text.isdigit() and 1 <= int(text) <= limit):
            sys.exit(f"{name}={text!r} will not do: it must be a whole number from 1 to {limit}.")
        return int(text)

    def environment(self):
        """All that MiniStack gets to see, and every function with it: nothing of the user's own."""
        return {
            **self.values,
            "LOCAL_DIR": str(self.dir),
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": os.environ.get("LANG", "C.UTF-8"),
            "TMPDIR": str(self.tmp),  # functions are unpacked below it
            "HOME": str(self.tmp),  # empty, so that nobody finds your ~/.aws
            "AUTH": "true",  # IAM and IoT policies count, as on AWS
            "PERSIST_STATE": "1",
            "STATE_DIR": str(self.state),
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.state / "s3"),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_REGION": self.values["AWS_REGION"],
            # Functions inherit it; without it they would call the real AWS.
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gateway}",
        }


# --- start, stop, status ----------------------------------------------------


def start(settings):
    _lock = one_at_a_time(settings)  # held until this process ends
    record = running(settings)
    if record:
        return already_running(settings, record)
    for name, port in settings.ports.items():
        require_free(port, name)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as good as Ctrl-C
    began, child = time.monotonic(), None
    try:
        with open(settings.log, "w") as log:
            child = subprocess.Popen(
                [sys.executable, __file__, "run"],
                env=settings.environment(),
                cwd=settings.dir,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that a later Ctrl-C in this terminal passes it by
            )
        trouble = wait_until_ready(settings, child)
    except KeyboardInterrupt:
        end_session(child)
        raise
    if trouble:
        end_session(child)
        tail = "\n".join(settings.log.read_text(errors="replace").splitlines()[-15:])
        sys.exit(f"{tail}\n\nThe local cloud did not start: {trouble}. Its log: {settings.log}")
    print(f"local cloud: {describe(settings, settings.ports)}, up in {time.monotonic() - began:.1f} s")


def stop(settings):
    _lock = one_at_a_time(settings)
    record = running(settings)
    if not record:
        print("local cloud: not running")
        return
    os.kill(record["pid"], signal.SIGTERM)
    began, seconds = time.monotonic(), 0
    while running(settings):
        time.sleep(0.1)
        if time.monotonic() - began < seconds + 1:
            continue
        seconds += 1
        if seconds == STOP_SECONDS:
            print(f"not stopped after {seconds} s: killing it (what it knew is saved)", flush=True)
            os.kill(record["pid"], signal.SIGKILL)
        elif seconds % 4 == 0:
            print(f"stopping: waiting for calls that still run ({seconds} s)", flush=True)
    print(f"local cloud: stopped after {time.monotonic() - began:.1f} s")


def status(settings):
    record = running(settings)
    if not record:
        print("local cloud: not running")
        return NOT_RUNNING
    healthy = readiness(record["GATEWAY_PORT"])
    print(f"local cloud: {describe(settings, record)}, {'healthy' if healthy else 'NOT ANSWERING'}")
    return 0 if healthy else 1


def describe(settings, record):
    pid = f", pid {record['pid']}" if "pid" in record else ""
    url, mqtt = f"http://127.0.0.1:{record['GATEWAY_PORT']}", f"127.0.0.1:{record['IOT_MTLS_PORT']}"
    return f"{url}, MQTT {mqtt}, log {settings.log}{pid}"


def one_at_a_time(settings):
    """The lock that start and stop take; the system drops it when the process ends."""
    settings.dir.mkdir(parents=True, exist_ok=True)
    file = open(settings.dir / "lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("local cloud: waiting for another start or stop to finish", flush=True)
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def running(settings):
    """The pid and the ports of the MiniStack that uses LOCAL_DIR, or None.

    `run` keeps its pid file locked for as long as it lives. So a file that was left
    behind never passes for a running one, even if its pid is somebody else's by now.
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


def already_running(settings, record):
    way_out = f"Stop it first: {os.path.basename(sys.executable)} {os.path.relpath(__file__)} stop"
    if settings.ports.items() - record.items():
        sys.exit(f"The local cloud already runs on other ports: {describe(settings, record)}. {way_out}")
    if not readiness(settings.gateway):
        sys.exit(f"The local cloud runs but does not answer: {describe(settings, record)}. {way_out}")
    if not settings.quiet:
        print(f"local cloud: already running, {describe(settings, record)}")


def require_free(port, name):
    """End with the way out when something else has the port."""
    deadline = time.monotonic() + 1  # one that was just killed takes a moment to let go
    while (trouble := why_taken(port)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if trouble:
        ports = "make local GATEWAY_PORT=… IOT_MTLS_PORT=…"
        sys.exit(f"Port {port} ({name}) is not free: {trouble}. Choose others: {ports}")


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
            return f"it ended with exit code {child.returncode}"
        answer = readiness(settings.gateway)
        if answer:
            mqtt = answer.get("iot_mtls")
            return None if mqtt == "listening" else f"MQTT on port {settings.mqtt} is {mqtt!r}"
        time.sleep(0.1)
    return f"not healthy after {START_SECONDS} s"


def readiness(port):
    """What MiniStack says about itself once both ports are served, else None."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", READY)
        response = connection.getresponse()
        return json.loads(response.read()) if response.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def end_session(child):
    """End a child that leads a session, and everything in it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(10)
        except (AttributeError, ProcessLookupError, subprocess.TimeoutExpired):
            pass  # not there yet; already gone; next time without asking


# --- run: MiniStack, with our changes ---------------------------------------


def run(settings):
    """Be MiniStack until a signal ends it."""
    os.umask(0o077)
    settings.state.mkdir(parents=True, exist_ok=True)
    settings.state.chmod(0o700)
    pid_file = open(settings.pid_file, "a+")  # open, hence locked, until we end
    try:
        os.lockf(pid_file.fileno(), os.F_TLOCK, 0)
    except OSError:
        sys.exit(f"Another one already uses {settings.dir}.")
    pid_file.truncate(0)
    print(json.dumps({"pid": os.getpid(), **settings.ports}), file=pid_file, flush=True)
    shutil.rmtree(settings.tmp, ignore_errors=True)  # unpacked functions of the last run
    settings.tmp.mkdir()
    clean = settings.environment()
    os.environ.clear()
    os.environ.update(clean)
    end_functions_with_this_process()
    try:
        from ministack import app
        from ministack.core import lambda_runtime, persistence
        from ministack.services import cloudwatch, iot, lambda_svc
    except ImportError as error:
        sys.exit(f"{error} for {sys.executable}: `make setup` installs it.")
    listen_on_loopback_only()
    require_device_credentials(iot)
    read_any_message(iot)
    answer_functions_at_once()
    end_idle_functions(lambda_svc, lambda_runtime)
    invoke_as_lambda_does(iot, lambda_svc)
    keep_saving(app, persistence, cloudwatch, iot, lambda_svc)
    refuse_pages_from_elsewhere(app)
    sys.argv = ["ministack"]  # MiniStack parses it
    app.main()


def take(module, name):
    """`module.name`, or the end with a plain message."""
    if not hasattr(module, name):
        sys.exit(
            f"deploy/local.py needs {module.__name__}.{name}, which ministack {version('ministack')} "
            "lacks. `make setup` installs the version that it was written for."
        )
    return getattr(module, name)


def replace(module, name, new):
    """Put `new` in the place of a function with the same parameters."""
    theirs, ours = (list(inspect.signature(f).parameters) for f in (take(module, name), new))
    if theirs != ours:
        sys.exit(
            f"deploy/local.py replaces {module.__name__}.{name}({', '.join(ours)}), which takes "
            f"({', '.join(theirs)}) in ministack {version('ministack')}. "
            "`make setup` installs the version that it was written for."
        )
    setattr(module, name, new)


def end_functions_with_this_process():
    """End the functions when this process ends, be it by kill -9.

    A second process waits at a pipe that closes when we go. (Linux can do that with
    PR_SET_PDEATHSIG, but then a function would end with the *thread* that started
    it, and here those are short-lived.)
    """
    if os.getsid(0) != os.getpid():
        return  # in the foreground the functions get the terminal's Ctrl-C themselves
    wait_here, _until_we_close = os.pipe()
    if os.fork():
        os.close(wait_here)
        return
    os.close(_until_we_close)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.read(wait_here, 1)
    os.killpg(0, signal.SIGKILL)


def listen_on_loopback_only():
    """BIND_HOST reaches the gateway only; MQTT listens on 0.0.0.0, whatever one sets."""
    create_server = asyncio.base_events.BaseEventLoop.create_server

    async def on_loopback(self, protocol_factory, host=None, port=None, **options):
        host = None if options.get("sock") else "127.0.0.1"
        return await create_server(self, protocol_factory, host, port, **options)

    asyncio.base_events.BaseEventLoop.create_server = on_loopback


def require_device_credentials(iot):
    """MQTT wants a client certificate, or a signature on WebSockets, as on AWS.

    Without this, MiniStack lets a client that shows neither do everything, even
    with AUTH=true.
    """
    from ministack.core.iam_evaluator import AuthError

    build, check = take(iot, "_mtls_build_ssl_context"), take(iot, "_ws_handshake_check")

    def build_ssl_context():
        context = build()
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def check_handshake(scope):
        return check(scope) or AuthError("Forbidden", "unsigned")

    replace(iot, "_mtls_build_ssl_context", build_ssl_context)
    replace(iot, "_ws_handshake_check", check_handshake)


def read_any_message(iot):
    """A message nested too deep for Python's JSON, or with a number too long for it, is no less a message.

    Without this, it ends the connection of whoever sent it, without an answer.
    """
    decode = take(iot, "_rule_message")

    def rule_message(payload):
        try:
            return decode(payload)
        except (ValueError, RecursionError):
            return payload.decode()

    replace(iot, "_rule_message", rule_message)


def answer_functions_at_once():
    """The Runtime API sends headers and body apart. With Nagle's algorithm the body
    waits 40 ms for the headers' ACK, at every call."""
    take(socketserver.StreamRequestHandler, "disable_nagle_algorithm")
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True


def end_idle_functions(lambda_svc, lambda_runtime):
    """MiniStack ends idle processes, but never the first of a version: no pause would lead to a cold start."""
    workers, lock = take(lambda_runtime, "_workers"), take(lambda_runtime, "_lock")
    kill_workers, limit = take(lambda_runtime, "kill_workers"), take(lambda_runtime, "_LOCAL_WORKER_TTL")
    acquire = take(lambda_svc, "acquire_worker")

    def acquire_worker(func_name, config, code_zip, qualifier="$LATEST", max_concurrency=None):
        idle = []
        with lock:
            for pool in workers.values():
                old = [each for each in pool if not each.in_use and time.time() - each.last_used > limit]
                idle += old
                pool[:] = [each for each in pool if each not in old]
        if idle:  # the caller need not wait for their end
            threading.Thread(target=kill_workers, args=(idle,)).start()
        return acquire(func_name, config, code_zip, qualifier=qualifier, max_concurrency=max_concurrency)

    replace(lambda_svc, "acquire_worker", acquire_worker)


def invoke_as_lambda_does(iot, lambda_svc):
    """What AWS promises for calls through a rule or an alias; MiniStack does not keep it.

    - A rule tries once, and when that fails the message is gone. Here it takes the
      asynchronous queue, which retries, and its calls show up in the metrics.
    - That queue knows the function's own event-invoke configuration only. Here the
      one of the called alias counts, with its on-failure destination.
    - A throttled call in the queue is a failed try. Here, as on AWS, it just waits.
    - All that is in the queue runs at once, be it thousands, each call in a process of
      its own. Here a few do, and the others wait: they are answered sooner that way.
    - Reserved concurrency is forgotten when an alias is called.
    """
    find, functions = take(lambda_svc, "_get_func_record_for_ref_in_scope"), take(lambda_svc, "_functions")
    limits_of, reserved_of = take(lambda_svc, "_event_invoke_config"), take(lambda_svc, "_reserved_concurrency")
    enqueue, execute = take(lambda_svc, "invoke_async_with_retry"), take(lambda_svc, "_execute_function")
    report = take(lambda_svc, "_emit_lambda_metrics")
    caller = contextvars.ContextVar("caller", default=None)  # None, "queue" or "rule"
    turns = threading.Semaphore(QUEUED_CALLS)

    def call_as(who, call, *args):
        contextvars.copy_context().run(lambda: (caller.set(who), call(*args)))

    def whole_function(func, config):
        """The function behind one version's record, and the alias that was called."""
        region, account, _, name, alias = (config["FunctionArn"].split(":") + [None])[3:8]
        return functions.get_scoped(account, region, name) or func, alias

    def dispatch_from_rule(account_id, region, function_arn, event):
        func, config, _ = find(function_arn, account_id=account_id, region=region)
        if not func or not config:
            raise LookupError(f"no function {function_arn}")  # the rule's error action gets to know
        record = {**func, "config": {**config, "FunctionArn": function_arn}}
        call_as("rule", lambda_svc.invoke_async_with_retry, record, event)

    def invoke_async(func, event):
        whole, alias = whole_function(func, func.get("config") or func)
        record = {**func, "event_invoke_config": limits_of(whole, alias), "event_invoke_configs": {}}
        call_as(caller.get() or "queue", enqueue, record, event)

    def execute_function(func, event):
        if not caller.get():
            return execute(func, event)
        with turns:
            return execute_in_turn(func, event)

    def execute_in_turn(func, event):
        max_age = (func.get("event_invoke_config") or {}).get("MaximumEventAgeInSeconds", 6 * 3600)
        give_up, pause = time.time() + max_age, 0.2
        while True:
            began = time.time()
            result = execute(func, event)
            if not result.get("throttle") or began + pause > give_up:
                break
            time.sleep(random.uniform(pause / 2, pause))
            pause = min(2 * pause, 2)
        if caller.get() == "rule":  # all others report by themselves
            name = (func.get("config") or func)["FunctionName"]
            report(name, (time.time() - began) * 1000, bool(result.get("error")), False)
        return result

    def reserved_concurrency(func, config):
        return reserved_of(whole_function(func, config)[0], config)

    replace(iot, "_dispatch_rule_to_lambda", dispatch_from_rule)
    replace(lambda_svc, "invoke_async_with_retry", invoke_async)
    replace(lambda_svc, "_execute_function", execute_function)
    replace(lambda_svc, "_reserved_concurrency", reserved_concurrency)


def keep_saving(app, persistence, cloudwatch, iot, lambda_svc):
    """Save what happens within seconds, and look at the alarms while at it.

    MiniStack saves when it is stopped gracefully, and only then: a kill -9 would take
    everything since the start. (S3 objects are on disk when PutObject answers.)
    It looks at alarms when somebody puts a metric: the functions' own never raise one.
    """
    from ministack.core.responses import request_scope
    from ministack.services import cloudformation

    serve, feed, execute = take(app, "app"), take(iot, "_feed_session"), take(lambda_svc, "_execute_function")
    alarms, evaluate = take(cloudwatch, "_alarms"), take(cloudwatch, "_evaluate_all_alarms")
    directory, format_of = Path(take(persistence, "STATE_DIR")), take(persistence, "_state_format_version")
    encode, all_services = take(persistence, "_json_default"), take(app, "_build_persistence_save_dict")
    prune, code_in_use = take(lambda_svc, "_prune_orphan_code_blobs"), []
    load, functions = take(app, "_load_persisted_state"), take(lambda_svc, "_functions")
    settle, stacks = take(lambda_svc, "_schedule_state_transition"), take(cloudformation, "_stacks")
    touched, saved, again, lock = time.monotonic(), {}, {}, threading.Lock()

    def touch():
        nonlocal touched
        touched = time.monotonic()

    def save_state(service, data):
        """As in MiniStack, but with the fast encoder and without a line in the log."""
        fresh = directory / f"{service}.json.tmp"
        wrapped = {"__ministack_format__": format_of(service), "payload": data}
        fresh.write_text(json.dumps(wrapped, default=encode))
        fresh.replace(directory / f"{service}.json")  # in one step: a kill finds the old or the new

    def save_all(services, is_due=lambda service, now: True):
        with lock:
            for service, get_state in services.items():
                began = time.monotonic()
                if not is_due(service, began):
                    continue
                try:
                    code_in_use.clear()
                    state = get_state()
                    if state is not None:
                        save_state(service, state)
                    saved[service] = began
                    # MiniStack drops old function code first; but now no file refers to it.
                    for referenced in code_in_use:
                        prune(referenced)
                except Exception as error:  # as a rule, it changed while it was read: next time
                    print(f"{service}: not saved, the file of before stays: {error!r}", flush=True)
                again[service] = began + 20 * (time.monotonic() - began)

    def is_due(service, now):
        """Until it was saved 10 s after the last sign of life. A big one takes long (the
        logs, after a load test): `again` keeps it to 5 % of the time."""
        return saved.get(service, -1e9) < touched + 10 and now > again.get(service, -1e9)

    def load_then_watch():
        load()
        for account, region, name in list(functions._data):
            with request_scope(account, region):
                settle(name, 0)  # else one that was killed while InProgress would stay so
        for stack in stacks._data.values():  # nobody goes on with them either
            status = stack["StackStatus"]
            if status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS":
                stack["StackStatus"] = BROKEN_OFF.get(status, "UPDATE_ROLLBACK_COMPLETE")
        threading.Thread(target=watch, daemon=True).start()  # never before: nothing is loaded then

    def watch():
        while True:
            time.sleep(2)
            try:
                if time.monotonic() < touched + 10:
                    for account, region in {key[:2] for key in list(alarms._data)}:
                        with request_scope(account, region):
                            evaluate()
                save_all(all_services(), is_due)
            except Exception as error:
                print(f"watching goes on after {error!r}", flush=True)

    async def gateway(scope, receive, send):
        if scope.get("path") != READY:
            touch()
        await serve(scope, receive, send)

    async def feed_session(session, data, max_buffer):
        touch()
        return await feed(session, data, max_buffer)

    def execute_function(func, event):
        result = execute(func, event)
        touch()
        return result

    replace(app, "app", gateway)
    replace(iot, "_feed_session", feed_session)
    replace(lambda_svc, "_execute_function", execute_function)
    replace(lambda_svc, "_prune_orphan_code_blobs", lambda referenced: code_in_use.append(referenced))
    replace(app, "save_all", lambda services: save_all(services))
    replace(app, "_load_persisted_state", load_then_watch)


def refuse_pages_from_elsewhere(app):
    """No web page of another site may use this cloud, for it runs the code it is given.

    Listening on loopback does not stop the browser on this machine, and MiniStack
    lets every page in (CORS `*`). Browsers say where a call comes from; SDKs do not.
    """
    serve = take(app, "app")
    here = re.compile(rb"(https?://)?([\w-]+\.)*(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")

    def comes_from_here(headers):
        if not here.fullmatch(headers.get(b"host", b"localhost")):
            return False  # somebody's name that leads to 127.0.0.1
        origin = headers.get(b"origin")
        return here.fullmatch(origin) if origin else headers.get(b"sec-fetch-site") != b"cross-site"

    async def guarded(scope, receive, send):
        if scope["type"] == "lifespan" or comes_from_here(dict(scope["headers"])):
            await serve(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"not for web pages of other sites\n"})

    replace(app, "app", guarded)


def main():
    parser = argparse.ArgumentParser(
        description="The local cloud: MiniStack on 127.0.0.1, for this machine only.",
        epilog="settings, from the environment:\n  " + "\n  ".join(f"{k}={v}" for k, v in DEFAULTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for does, text in (
        (start, "start it in the background and wait until it answers"),
        (stop, "let it save its state and end it"),
        (status, f"say in a line whether it runs (exit code {NOT_RUNNING}: it does not)"),
        (run, "be it, in the foreground; `start` uses this"),
    ):
        commands.add_parser(does.__name__, help=text, description=text).set_defaults(does=does)
    commands.choices["start"].add_argument("--quiet", action="store_true", help="say nothing when it runs already")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        settings = Settings(os.environ)
        settings.quiet = getattr(arguments, "quiet", False)
        sys.exit(arguments.does(settings))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
