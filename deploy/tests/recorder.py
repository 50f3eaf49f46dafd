"""What the deployer and the notebooks ask of AWS: a proxy before the local cloud, read by botocore's models.

The models are AWS's own: they say which operations there are, which parameters each takes, and by which pattern. The
proxy writes down each call, and hands everything on as it came, so that signatures stay good.
"""

import http.client
import http.server
import json
import re
import threading
from collections import namedtuple
from functools import cache
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.etree import ElementTree

from botocore.loaders import Loader
from botocore.model import ServiceModel

# `problem` says how the call differs from the model: None where it does not.
Call = namedtuple("Call", "service operation arguments problem")
SIGNED_FOR = re.compile(r"Credential=[^/]+/\d+/[\w-]+/([\w-]+)/aws4_request")


class Recorder:
    """`with Recorder(url) as recorder`: what is sent to `recorder.url` reaches `url`, and is in `recorder.calls`."""

    def __init__(self, url):
        self.calls, upstream = [], urlsplit(url).netloc

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version, disable_nagle_algorithm = "HTTP/1.1", True  # notebooks measure how long an answer takes
            log_message = lambda *_: None  # noqa: E731

            def handle_one_request(handler):
                handler.raw_requestline = handler.rfile.readline(1 << 16)
                if not handler.raw_requestline or not handler.parse_request():
                    handler.close_connection = True
                    return
                body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
                self.calls += read(handler.command, handler.path, handler.headers, body)
                onward = http.client.HTTPConnection(upstream, timeout=120)
                onward.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
                for name, value in handler.headers.items():
                    if name.lower() not in ("connection", "expect"):
                        onward.putheader(name, value)
                onward.endheaders(body)
                answer = onward.getresponse()
                data = answer.read()
                handler.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                        handler.send_header(name, value)
                length = answer.getheader("Content-Length") if handler.command == "HEAD" else len(data)
                handler.send_header("Content-Length", length or 0)
                handler.end_headers()
                handler.wfile.write(data)
                onward.close()

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.socket.listen(128)  # notebook 5 asks 50 times at once
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


# --- which operation --------------------------------------------------------


@cache
def model(service):
    return ServiceModel(Loader().load_service_model(service, "service-2"), service)


@cache
def routes(service):
    """[(method, path's pattern, query that must be there, operation)] of a REST service, the most particular first."""
    found = []
    for name in model(service).operation_names:
        http = model(service).operation_model(name).http
        path, _, query = http["requestUri"].partition("?")
        pattern = re.sub(r"\\{(\w+)(\\\+)?\\}", lambda m: f"(?P<{m[1]}>{'.+' if m[2] else '[^/]+'})", re.escape(path))
        found.append((http["method"], re.compile(pattern + "/?"), set(dict(parse_qsl(query, True)).items()), name))
    return sorted(found, key=lambda route: (-len(route[2]), -route[1].pattern.count("/"), route[1].pattern.count("(?P")))


def read(method, target, headers, body):
    """The call that a request is; none where nobody signed it."""
    signed = SIGNED_FOR.search(headers.get("Authorization", ""))
    if not signed:
        return []
    service, path = {"monitoring": "cloudwatch"}.get(signed[1], signed[1]), urlsplit(target)
    query = dict(parse_qsl(path.query, keep_blank_values=True))
    try:
        protocol = model(service).metadata["protocol"]
        if protocol == "query":
            form = dict(parse_qsl(body.decode(), keep_blank_values=True))
            name, _ = form.pop("Action"), form.pop("Version")
            operation = model(service).operation_model(name)
            arguments = unflattened(operation.input_shape, form, "")
        elif protocol == "json":
            prefix, _, name = headers["X-Amz-Target"].rpartition(".")
            assert prefix == model(service).metadata["targetPrefix"]
            operation = model(service).operation_model(name)
            arguments = json.loads(body or b"{}")
        else:
            name, labels = route(service, method, path.path, query, headers)
            operation = model(service).operation_model(name)
            arguments = by_place(operation.input_shape, labels, query, headers, body, protocol)
    except Exception as error:
        return [Call(service, f"{method} {target}", {}, f"no operation is like this: {error!r}")]
    return [Call(service, name, arguments, problem(operation.input_shape, arguments, name))]


def route(service, method, path, query, headers):
    """(operation, {label: value}) of a REST call."""
    wanted = query.get("x-id")  # the SDK's own word for what it calls, of S3 only
    for its_method, pattern, must, name in routes(service):
        found = pattern.fullmatch(path)
        if its_method != method or not found or wanted not in (None, name) or not must - {("x-id", name)} <= set(query.items()):
            continue
        shape = model(service).operation_model(name).input_shape
        required = [shape.members[each].serialization for each in shape.required_members] if shape else []
        by_header = [each["name"] for each in required if each.get("location") == "header"]
        if all(each in headers for each in by_header):
            return name, {label: unquote(value) for label, value in found.groupdict().items()}
    raise LookupError(f"{method} {path}")


# --- with which arguments ---------------------------------------------------


def plain(shape, text):
    """A text as the shape's type."""
    if shape.type_name in ("integer", "long"):
        return int(text)
    if shape.type_name == "boolean":
        return {"true": True, "false": False}[text]
    return text


def unflattened(shape, form, prefix):
    """The arguments in a form: `a.b=1`, `a.member.1=2`. What the model does not know stays under its own name."""
    if shape is None:
        return dict(form)
    arguments, known = {}, set()
    for name, member in shape.members.items():
        key = prefix + member.serialization.get("name", name)
        under = {each: form[each] for each in form if each == key or each.startswith(f"{key}.")}
        if not under:
            continue
        known |= under.keys()
        if member.type_name == "structure":
            arguments[name] = unflattened(member, under, f"{key}.")
        elif member.type_name == "list":
            item, arguments[name] = f"{key}.member", []
            for number in sorted({int(each.removeprefix(f"{item}.").split(".")[0]) for each in under}):
                one = f"{item}.{number}"
                part = {each: under[each] for each in under if each == one or each.startswith(f"{one}.")}
                is_text = member.member.type_name != "structure"
                arguments[name].append(part[one] if is_text else unflattened(member.member, part, f"{one}."))
        else:
            arguments[name] = plain(member, under[key])
    return arguments | {each: form[each] for each in form.keys() - known}


def by_place(shape, labels, query, headers, body, protocol):
    """The arguments of a REST call, from its path, query, headers and body."""
    arguments, rest = {}, query.keys() - {"x-id"}
    members = shape.members if shape else {}
    for name, member in members.items():
        where, key = member.serialization.get("location"), member.serialization.get("name", name)
        if where == "uri":
            arguments[name] = labels[key]
        elif where == "querystring" and key in query:
            arguments[name] = plain(member, query[key])
            rest.discard(key)
        elif where == "header" and key in headers:
            arguments[name] = plain(member, headers[key])
        elif where == "headers":
            found = {each: value for each, value in headers.items() if each.lower().startswith(key.lower())}
            arguments |= {name: found} if found else {}
    payload = shape.serialization.get("payload") if shape else None
    if payload and members[payload].type_name in ("blob", "string"):
        arguments[payload] = body
    elif body and protocol == "rest-xml":
        arguments[payload] = from_xml(members[payload], ElementTree.fromstring(body))
    elif body:
        by_key = {member.serialization.get("name", name): name for name, member in members.items()}
        arguments |= {by_key.get(key, key): value for key, value in json.loads(body).items()}
    # What an operation always has in its query is part of its name.
    return arguments | {key: query[key] for key in rest if query[key] and key != "list-type"}


def from_xml(shape, element):
    """What an element says, by its shape."""
    if shape.type_name != "structure":
        return plain(shape, element.text or "")
    found = {}
    for name, member in shape.members.items():
        key = member.serialization.get("name", name)
        parts = [each for each in element if each.tag.partition("}")[2] == key or each.tag == key]
        if parts and member.type_name == "list":
            found[name] = [from_xml(member.member, each) for each in parts]
        elif parts:
            found[name] = from_xml(member, parts[0])
    return found


# --- whether they are right -------------------------------------------------

TYPES = {
    "structure": dict, "map": dict, "list": list, "string": str, "character": str, "boolean": bool, "integer": int, "long": int,
    "double": (int, float), "float": (int, float),
}  # fmt: skip


def problem(shape, value, where):
    """The first way in which a value differs from its shape, or None."""
    if shape is None:
        return f"{where} takes nothing, not {value}" if value else None
    kind, facts = shape.type_name, shape.metadata
    if kind in TYPES and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return f"{where}: {value!r} is no {kind}"
    size = value if kind in ("integer", "long") else len(value) if hasattr(value, "__len__") else None
    if size is not None and kind not in ("structure", "blob") and not facts.get("min", size) <= size <= facts.get("max", size):
        return f"{where}: {value!r} is not between {facts.get('min')} and {facts.get('max')}"
    if kind == "string" and (enum := getattr(shape, "enum", None)) and value not in enum:
        return f"{where}: {value!r} is none of {enum}"
    if kind == "string" and (pattern := facts.get("pattern")) and not is_like(pattern, value):
        return f"{where}: {value!r} is not like {pattern}"
    inside = []
    if kind == "structure":
        if unknown := value.keys() - shape.members.keys():
            return f"{where} takes no {', '.join(sorted(unknown))}"
        if lacking := set(shape.required_members) - value.keys():
            return f"{where} lacks {', '.join(sorted(lacking))}"
        inside = [problem(shape.members[name], each, f"{where}.{name}") for name, each in value.items()]
    if kind == "list":
        inside = [problem(shape.member, each, f"{where}[]") for each in value]
    if kind == "map":
        inside = [problem(shape.value, each, f"{where}.{key}") for key, each in value.items()]
    return next(filter(None, inside), None)


# Java's names of kinds of characters in AWS's patterns; another one fails the test.
KINDS = {r"\p{L}": r"\w", r"\p{Z}": r"\s", r"\p{N}": r"\d"}


def is_like(pattern, value):
    for java, python in KINDS.items():
        pattern = pattern.replace(java, python)
    return re.fullmatch(pattern, value, re.S) is not None
