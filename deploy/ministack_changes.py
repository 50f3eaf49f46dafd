"""What a laptop needs of MiniStack that it does not do: one function for each change, with the reason.

Importing this makes the changes, in memory. When the installed MiniStack lacks a name, the import fails and says so.
tests/test_local.py also runs a MiniStack without them: there a newer version shows which change it makes needless.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import inspect
import json
import os
import random
import re
import socketserver
import ssl
import sys
import threading
import time
from pathlib import Path

from ministack import app
from ministack.app import _build_persistence_save_dict
from ministack.core import iam_evaluator
from ministack.core.iam_evaluator import AuthError
from ministack.core.lambda_runtime import _LOCAL_WORKER_TTL, _lock, _workers, kill_workers
from ministack.core.persistence import STATE_DIR, _json_default, _json_object_hook, _state_format_version
from ministack.core.responses import request_scope
from ministack.services import iot, lambda_svc
from ministack.services.lambda_svc import (
    _emit_lambda_metrics, _event_invoke_config, _functions, _get_func_record_for_ref_in_scope,
    _schedule_state_transition, get_state,
)  # fmt: skip

caller = contextvars.ContextVar("caller", default=None)  # who calls a function: None, "queue" or "rule"


def instead_of(module, name):
    """Put the decorated function in the place of `module.name`, which it gets before the parameters of that."""
    original = getattr(module, name)

    def put(new):
        (_, *ours), theirs = inspect.signature(new).parameters, list(inspect.signature(original).parameters)
        if ours != theirs:
            raise ImportError(f"{module.__name__}.{name} takes ({', '.join(theirs)}), not ({', '.join(ours)})")
        setattr(module, name, functools.partial(new, original))

    return put


# --- authentication ---------------------------------------------------------

create_server = asyncio.base_events.BaseEventLoop.create_server


async def listen_on_loopback_only(self, protocol_factory, host=None, port=None, **options):
    """BIND_HOST reaches the gateway only; MQTT listens on 0.0.0.0, whatever one sets."""
    host = None if options.get("sock") else "127.0.0.1"
    return await create_server(self, protocol_factory, host, port, **options)


asyncio.base_events.BaseEventLoop.create_server = listen_on_loopback_only


@instead_of(iot, "_mtls_build_ssl_context")
def require_device_certificates(build):
    """MiniStack lets an MQTT client that shows no certificate do everything, even with AUTH=true."""
    context = build()
    context.verify_mode = ssl.CERT_REQUIRED
    return context


@instead_of(iot, "_ws_handshake_check")
def require_signed_websockets(check, scope):
    """MiniStack lets a WebSocket client that signs nothing do everything, even with AUTH=true."""
    return check(scope) or AuthError("Forbidden", "unsigned")


HERE = re.compile(rb"(https?://)?([\w-]+\.)*(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


@instead_of(app, "app")
async def refuse_pages_from_elsewhere(serve, scope, receive, send):
    """MiniStack lets every web page in (CORS `*`), and it runs the code it is given. Listening on loopback does not
    stop the browser on this machine. Browsers say where a call comes from; SDKs do not."""
    note_use()
    headers = dict(scope.get("headers", ()))
    origin, host = headers.get(b"origin"), headers.get(b"host", b"localhost")
    from_here = HERE.fullmatch(origin) if origin else headers.get(b"sec-fetch-site") != b"cross-site"
    if from_here and HERE.fullmatch(host):  # another host is somebody's name that leads to 127.0.0.1
        await serve(scope, receive, send)
    elif scope["type"] == "websocket":
        await send({"type": "websocket.close"})
    else:
        await send({"type": "http.response.start", "status": 403, "headers": []})
        await send({"type": "http.response.body", "body": b"not for web pages of other sites\n"})


# --- rights as on AWS -------------------------------------------------------


@instead_of(iam_evaluator, "_resolve_condition_key")
def name_the_role_of_a_session(resolve, key, ctx):
    """For MiniStack aws:PrincipalArn is the session's ARN; on AWS it is the ARN of the session's role."""
    if key.lower() == "aws:principalarn" and ctx.principal_type == "AssumedRole":
        return f"arn:aws:iam::{ctx.principal_account}:role/{ctx.principal_arn.split('/')[1]}"
    return resolve(key, ctx)


@instead_of(iam_evaluator, "_first_match")
def fill_in_policy_variables(match, ctx, stmts, effect):
    """MiniStack takes ${aws:PrincipalTag/stack} literally. Where a caller has no such key, nothing matches."""

    def filled(text):
        value = lambda found: iam_evaluator._resolve_condition_key(found[1], ctx) or "\ufffd"  # noqa: E731
        return re.sub(r"\$\{([\w:/-]+)\}", value, text)

    def made(each):
        if "${" not in f"{each.resources}{each.conditions}":
            return each
        conditions = json.loads(filled(json.dumps(each.conditions)))
        return dataclasses.replace(each, resources=[*map(filled, each.resources)], conditions=conditions)

    return match(ctx, [*map(made, stmts)], effect)


@instead_of(app, "_get_module")
def keep_the_boundary_of_roles(load, name):
    """CloudFormation drops a role's permissions boundary."""
    is_new, module = name not in app._loaded_modules, load(name)
    if is_new and name == "cloudformation":
        iam = module.provisioners._iam
        steps = module.provisioners._RESOURCE_HANDLERS["AWS::IAM::Role"]

        def with_boundary(change, properties, *args):
            boundary = args[properties].get("PermissionsBoundary")
            if boundary and not iam._policy_exists(boundary):
                raise ValueError(f"Scope ARN: {boundary} does not exist or is not attachable.")
            name, attributes = change(*args)
            iam._roles[name]["PermissionsBoundary"] = boundary
            return name, attributes

        for step, properties in ("create", 1), ("update", 2):
            steps[step] = functools.partial(with_boundary, steps[step], properties)
    return module


# --- rules and functions as on AWS ------------------------------------------


@instead_of(iot, "_rule_message")
def read_any_message(decode, payload):
    """A message nested too deep for Python's JSON, or with a number too long for it, ends the connection of whoever
    sent it, without an answer. On AWS it is a message like any other."""
    try:
        return decode(payload)
    except (ValueError, RecursionError):
        return payload.decode()


def answer_functions_at_once():
    """The Runtime API sends headers and body apart: with Nagle's algorithm, the body waits 40 ms for an ACK."""
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True


answer_functions_at_once()


@instead_of(lambda_svc, "acquire_worker")
def end_idle_functions(acquire, func_name, config, code_zip, qualifier="$LATEST", max_concurrency=None):
    """MiniStack ends idle processes, but never the first of a version: no pause would lead to a cold start."""
    idle = []
    with _lock:
        for pool in _workers.values():
            old = [each for each in pool if not each.in_use and time.time() - each.last_used > _LOCAL_WORKER_TTL]
            idle += old
            pool[:] = [each for each in pool if each not in old]
    if idle:  # the caller need not wait for their end
        threading.Thread(target=kill_workers, args=(idle,)).start()
    return acquire(func_name, config, code_zip, qualifier, max_concurrency)


def whole_function(func, config):
    """The function behind one version's record, and the alias that was called."""
    region, account, _, name, alias = (config["FunctionArn"].split(":") + [None])[3:8]
    return _functions.get_scoped(account, region, name) or func, alias


@instead_of(lambda_svc, "_reserved_concurrency")
def reserve_concurrency_for_aliases(reserved_of, func, config):
    """MiniStack forgets reserved concurrency when an alias is called."""
    return reserved_of(whole_function(func, config)[0], config)


def call_as(who, call, *args):
    contextvars.copy_context().run(lambda: (caller.set(who), call(*args)))


@instead_of(iot, "_dispatch_rule_to_lambda")
def retry_calls_from_rules(_, account_id, region, function_arn, event):
    """A rule tries once, and when that fails the message is gone. Here it takes the asynchronous queue."""
    func, config, _ = _get_func_record_for_ref_in_scope(function_arn, account_id=account_id, region=region)
    if not func or not config:
        raise LookupError(f"no function {function_arn}")  # the rule's error action gets to know
    record = {**func, "config": {**config, "FunctionArn": function_arn}}
    call_as("rule", lambda_svc.invoke_async_with_retry, record, event)


@instead_of(lambda_svc, "_execute_function")
def count_calls_from_rules(execute, func, event):
    """Calls from rules are missing in the metrics; all others report by themselves."""
    began, result = time.time(), execute(func, event)
    note_use()
    if caller.get() == "rule" and not result.get("throttle"):
        name = (func.get("config") or func)["FunctionName"]
        _emit_lambda_metrics(name, (time.time() - began) * 1000, bool(result.get("error")), False)
    return result


@instead_of(lambda_svc, "invoke_async_with_retry")
def use_retry_settings_of_aliases(enqueue, func, event):
    """The asynchronous queue knows the function's own event-invoke configuration only. Here the one of the called
    alias counts, with its on-failure destination."""
    whole, alias = whole_function(func, func.get("config") or func)
    record = {**func, "event_invoke_config": _event_invoke_config(whole, alias), "event_invoke_configs": {}}
    call_as(caller.get() or "queue", enqueue, record, event)


@instead_of(lambda_svc, "_execute_function")
def let_throttled_calls_wait(execute, func, event):
    """A throttled call in the queue is a failed try. Here, as on AWS, it just waits."""
    max_age = (func.get("event_invoke_config") or {}).get("MaximumEventAgeInSeconds", 6 * 3600)
    give_up, pause = time.time() + max_age, 0.2
    while (result := execute(func, event)).get("throttle") and caller.get() and time.time() + pause < give_up:
        time.sleep(random.uniform(pause / 2, pause))
        pause = min(2 * pause, 2)
    return result


turns = threading.Semaphore(max(1, int(os.environ["LAMBDA_ACCOUNT_CONCURRENCY"]) // 4))


@instead_of(lambda_svc, "_execute_function")
def run_few_queued_calls_at_once(execute, func, event):
    """All that is in the queue runs at once, be it thousands, each call in a process of its own. With a quarter of the
    calls that may run at once, the others wait and are answered sooner."""
    with turns if caller.get() else contextlib.nullcontext():
        return execute(func, event)


# --- what it keeps ----------------------------------------------------------

last_use, loaded, saving = time.monotonic(), threading.Event(), threading.Lock()
save_again = {}  # when each file may be written again
TOGETHER = "together"  # the file of all services but these: theirs grow with each call, and nothing depends on them
APART = ("cloudwatch_logs", "cloudwatch")


def file_of(service):
    return service if service in APART else TOGETHER


def note_use():
    global last_use
    last_use = time.monotonic()


@instead_of(iot, "_feed_session")
async def note_use_by_devices(feed, session, data, max_buffer):
    note_use()
    return await feed(session, data, max_buffer)


@instead_of(app, "_load_persisted_state")
def save_while_running(load):
    """MiniStack saves when it is stopped gracefully, and only then: a kill -9 would take everything since the start.
    (S3 objects are on disk when PutObject answers.)"""
    load()
    get_state()  # drops unused code
    loaded.set()

    def watch():
        while True:
            time.sleep(2)
            now = time.monotonic()
            if now < last_use + 300:
                services = _build_persistence_save_dict().items()
                app.save_all({name: get for name, get in services if now > save_again.get(file_of(name), 0)})

    threading.Thread(target=watch, daemon=True).start()  # never before: nothing is loaded then


@instead_of(app, "save_all")
def save_what_belongs_together(_, services):
    """MiniStack saves one service after the other, each in a file of its own: a kill in between leaves a bucket
    without the stack that made it. Here they are of one moment, and one rename puts all in force."""
    with saving:
        for file in {*map(file_of, services)}:
            write(file, {name: get for name, get in services.items() if file_of(name) == file})


def write(file, services):
    began, interval = time.monotonic(), sys.getswitchinterval()
    # No other thread changes anything meanwhile, half a second at most. (One may have asked for its turn before.)
    sys.setswitchinterval(0.5)
    time.sleep(0)
    try:
        states = {
            name: {"__ministack_format__": _state_format_version(name), "payload": state}
            for name, get in services.items()
            if (state := get()) is not None
        }
        text = json.dumps(states if file == TOGETHER else states[file], default=_json_default)
    except Exception as error:
        print(f"{file}: not saved, the earlier file is kept: {error!r}", flush=True)
        return
    finally:
        sys.setswitchinterval(interval)
    fresh = Path(STATE_DIR, f"{file}.json.tmp")
    fresh.write_text(text)
    fresh.replace(fresh.with_suffix(""))  # a kill finds the old or the new
    # A big one takes long (the logs, after a load test): it gets 5 % of the time.
    save_again[file] = began + 20 * (time.monotonic() - began)


@instead_of(app, "load_state")
def load_what_belongs_together(load, service):
    file = Path(STATE_DIR, f"{TOGETHER}.json")
    if service in APART or not file.exists():
        return load(service)
    if not together:
        together.update(json.loads(file.read_text(), object_hook=_json_object_hook))
    return together.pop(service, {}).get("payload")


together = {}  # what was read and not loaded yet


@instead_of(lambda_svc, "_prune_orphan_code_blobs")
def drop_unused_code_at_the_start(drop, referenced):
    """MiniStack drops it before each save, when the file of before still refers to it."""
    if not loaded.is_set():
        drop(referenced)


@instead_of(app, "_load_persisted_state")
def settle_what_was_under_way(load):
    """When everything was killed, nobody continues the changes of functions and stacks that were in progress: they
    would stay so, and refuse an update. A stack's update counts as rolled back."""
    load()
    for account, region, name in list(_functions._data):
        with request_scope(account, region):
            _schedule_state_transition(name, 0)
    broken_off = {"CREATE_IN_PROGRESS": "CREATE_FAILED", "DELETE_IN_PROGRESS": "DELETE_FAILED"}
    # Where stacks were saved, it is imported by now. Otherwise no start waits for it: it takes as long as all the rest.
    cloudformation = sys.modules.get("ministack.services.cloudformation")
    for stack in cloudformation._stacks._data.values() if cloudformation else ():
        status = stack["StackStatus"]
        if status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS":
            stack["StackStatus"] = broken_off.get(status, "UPDATE_ROLLBACK_COMPLETE")
