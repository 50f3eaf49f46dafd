"""What can be broken on the way: the client's connection to the broker, and the function's calls of the cloud."""

import http.client
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Wire:
    """A TCP proxy in front of the broker: it can cut, stop for a while, and swallow one direction."""

    def __init__(self, to):
        self.to, self.pairs, self.swallowed = to, [], 0
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
            pair = (near, far)
            for each in pair:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
        shut(pair)
        for each in pair:
            each.close()

    def cut(self):
        pairs, self.pairs = self.pairs, []
        for pair in pairs:
            shut(pair)

    def stall(self, seconds):
        self.open.clear()
        time.sleep(seconds)
        self.open.set()

    @contextmanager
    def swallowing(self, way):
        """Drop what goes `up` to the broker, or `down` from it; then cut, as what is missing in the middle of a TLS
        stream is missing for good."""
        before, self.swallow = self.swallowed, way
        try:
            yield
        finally:
            self.swallow = None
            self.cut()
        assert self.swallowed > before, "nothing was swallowed"

    def close(self):
        self.listener.close()
        self.cut()


def shut(pair):
    for each in pair:
        try:
            each.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


class Gateway:
    """What the function takes for the cloud. It passes calls on, but for the paths that a case has closed, and may send
    the body of an answer slowly, or leave calls on old connections without one."""

    def __init__(self, to):
        self._closed, self.refused = {}, Counter()
        self.slow, self.old_before = None, 0  # the path whose answers crawl; when a connection that is dead was made
        self.crawled, self.unheard, self.answers = 0, 0, Counter()
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                self.made = time.monotonic()

            def crawl(self, data):
                """A byte now and then: the connection is alive, and nobody can wait for the end."""
                gateway.crawled += 1
                try:
                    for n in range(len(data)):
                        self.wfile.write(data[n : n + 1])
                        self.wfile.flush()
                        time.sleep(0.2)
                except OSError:  # whoever asked has closed the connection
                    self.close_connection = True

            def pass_on(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.made < gateway.old_before:
                    gateway.unheard += 1
                    self.rfile.read(1)  # until the function closes the connection
                    self.close_connection = True
                    return
                for prefix, silence in list(gateway._closed.items()):
                    if unquote(self.path).startswith(prefix):
                        gateway.refused[prefix] += 1
                        time.sleep(silence)
                        self.close_connection = True
                        return
                upstream = http.client.HTTPConnection("127.0.0.1", to, timeout=20)
                try:
                    upstream.request(self.command, self.path, body, dict(self.headers))
                    reply = upstream.getresponse()
                    data = reply.read()
                except OSError:
                    self.close_connection = True
                    return
                finally:
                    upstream.close()
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                gateway.answers[self.path.partition("?")[0], reply.status] += 1
                if data and gateway.slow and self.path.startswith(gateway.slow):
                    self.crawl(data)
                else:
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = pass_on

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):  # a function that was killed in the middle of a call
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self, prefix, silence=0):
        """Hang up on calls whose path begins so, after a silence of some seconds."""
        self.refused[prefix] = 0
        self._closed[prefix] = silence

    def reopen(self, prefix):
        del self._closed[prefix]

    def forget(self):
        """Answer nothing any more on the connections that there are, and do not close them either."""
        self.unheard, self.old_before = 0, time.monotonic()

    @contextmanager
    def crawling(self, prefix):
        self.crawled, self.slow = 0, prefix
        try:
            yield
        finally:
            self.slow = None
        assert self.crawled, f"the function never called {prefix}"

    @contextmanager
    def closed(self, prefix, silence=0):
        self.close(prefix, silence)
        try:
            yield
        finally:
            self.reopen(prefix)
        assert self.refused[prefix], f"the function never called {prefix}"
