"""The live page in a real browser: headless Chromium, driven by Selenium, looked at by axe-core.

It needs Debian's packages `chromium` and `chromium-driver` (or Chrome and its driver) and `npm`; without them the
tests that need them are skipped and say so. Screenshots lie in target/live.

Most tests run against a stand-in for the cloud (stand_in.py). `test_the_whole_way` asks the real function in a local
cloud of its own, or in the one whose device `live` lies in the folder $LIVE_DEVICES. How fast the page is depends on the
machine: it is measured, and target/live/*.json and `pytest -s` say it.
"""

import base64
import hashlib
import http.client
import http.server
import io
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import pytest
from clients import CLIENT, LABEL, NAMES, REFERENCE, ROOT, ROW, TARGET, expected
from local_cloud import local_cloud, size, wait_for
from stand_in import StandIn

SCREENSHOTS = ROOT / "target/live"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
# npm's own `dist.integrity` of this version.
AXE, AXE_SHA512 = "axe-core@4.14.1", (
    "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
)
CLASSES = REFERENCE["classes"]
SCREENS = {"desktop": (1280, 800), "phone": (390, 844)}


# --- the server, the browser ------------------------------------------------------------------------------


class Server:
    """`client live`, on a free port."""

    def __init__(self, devices, device="live", **settings):
        environment = {**os.environ, "LIVE_PORT": "0", "NO_BROWSER": "1", "RATE": "5", "PACE": "1000", **settings}
        self.process = subprocess.Popen(
            [CLIENT, "--dir", devices, "live", "--device", device], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        # Its first line says where it is; a server that says nothing has said why on standard error.
        said = queue.Queue()
        threading.Thread(target=lambda: said.put(self.process.stdout.readline()), daemon=True).start()
        self.url = re.search(r"http://\S+", said.get(timeout=30)).group()
        self.port = int(re.search(r":(\d+)/", self.url).group(1))
        self.cookie = f"live_token_{self.port}={self.url.partition('?token=')[2]}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self):
        """As Ctrl-C does it; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.stdout.close()
            self.process.stderr.close()

    def request(self, method, path, body=None, host="127.0.0.1", **changes):
        """(status, headers, body) of a request as our own page would send it, but for `changes` of its headers."""
        ours = f"{host}:{self.port}"
        headers = {"Host": ours, "Cookie": self.cookie}
        if method == "POST":
            headers |= {"Origin": f"http://{ours}", "Content-Type": "application/json"}
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        connection = http.client.HTTPConnection(host, self.port, timeout=20)
        try:
            connection.request(method, path, body, {name: value for name, value in headers.items() if value})
            response = connection.getresponse()
            endless = response.getheader("Content-Type") == "text/event-stream"
            return response.status, dict(response.getheaders()), "" if endless else response.read().decode()
        finally:
            connection.close()

    def ask(self, row, **changes):
        status, _, body = self.request("POST", "/ask", json.dumps(row), **changes)
        return status, json.loads(body)

    def memory(self):
        """Resident, in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024


def own_address():
    """This machine's, in its network: connecting a UDP socket sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]


def listener(server, narrow=False):
    """A page that has asked for the events and reads none yet. Of what it does not read, the system keeps 4 MB for it,
    that is of 40 s; with a narrow connection some kB."""
    page = socket.socket()
    if narrow:
        page.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        page.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    page.settimeout(20)
    page.connect(("127.0.0.1", server.port))
    page.sendall(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nCookie: {server.cookie}\r\n\r\n".encode())
    return page


class Page:
    """A page in the browser, as somebody sees and uses it."""

    def __init__(self, driver):
        self.driver = driver

    def open(self, url, screen="desktop", scheme="light", motion="no-preference"):
        width, height = SCREENS[screen]
        self.cdp("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": motion}
        self.cdp("Emulation.setEmulatedMedia", features=[dict(name=n, value=v) for n, v in features.items()])
        self.driver.get(url)
        return self

    def cdp(self, command, **arguments):
        return self.driver.execute_cdp_cmd(command, arguments)

    def js(self, script, *arguments):
        return self.driver.execute_script(f"return {script}", *arguments)

    def later(self, script):
        """What the promise `script` comes to."""
        return self.driver.execute_async_script(f"const done = arguments[0]; ({script}).then(done, (e) => done(`${{e}}`))")

    def text(self, selector):
        return self.js("document.querySelector(arguments[0]).textContent", selector)

    def element(self, id):
        return self.driver.find_element("id", id)

    def focused(self):
        return self.js("document.activeElement.id")

    def picture(self, name):
        """The whole page, into target/live."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        height = self.js("document.documentElement.scrollHeight")
        width = self.js("innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.cdp("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        (SCREENSHOTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def inked(self):
        """How many pixels of the plane have a mark on them."""
        return self.js(
            "(() => { const c = document.getElementById('ink'); const d = c.getContext('2d').getImageData(0, 0,"
            " c.width, c.height).data; let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
        )

    def complaints(self):
        """What the browser wrote on its console, but for a server that went away and pixels that a test reads."""
        expected = ("ERR_CONNECTION_REFUSED", "ERR_INCOMPLETE", "willReadFrequently")
        said = [entry["message"] for entry in self.driver.get_log("browser")]
        return [text for text in said if not any(word in text for word in expected)]


@pytest.fixture(scope="module")
def driver():
    yield from chromium()


def chromium(**logs):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium here: apt install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    # no-sandbox: Chromium refuses to be root, as in a container, with it.
    for argument in ("--headless=new", "--hide-scrollbars", *(["--no-sandbox"] if os.geteuid() == 0 else [])):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", **logs})
    # Chromium leaves a folder for each run where temporary files go.
    with TemporaryDirectory(ignore_cleanup_errors=True) as tmp:
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER, env={**os.environ, "TMPDIR": tmp}))
        driver.set_script_timeout(30)
        yield driver
        driver.quit()


@pytest.fixture
def page(driver):
    yield Page(driver)
    driver.get("about:blank")
    driver.get_log("browser")  # what came late is not the next test's


@pytest.fixture
def stand_in(tmp_path):
    with StandIn(tmp_path / "devices") as stand_in:
        yield stand_in


@pytest.fixture
def server(stand_in):
    with Server(stand_in.folder) as server:
        yield server


@pytest.fixture
def brisk(stand_in):
    """A server that asks often: for what is to be seen only after many answers."""
    with Server(stand_in.folder, RATE="50") as server:
        yield server


# --- the whole way -----------------------------------------------------------------------------------------


@pytest.fixture
def device(model):
    """(folder, name) of a device whose requests a real function answers."""
    if folder := os.environ.get("LIVE_DEVICES"):
        yield folder, "live"
        return
    with local_cloud(model) as cloud:
        cloud.must("deploy")
        folder = cloud.dir.parent / "devices"
        process = cloud.deployer("device", "live", "--dir", str(folder))
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
        yield folder, "live"


def test_the_whole_way(device, page):
    """From the real function to the pixel, and back from the keyboard to the function."""
    from selenium.webdriver.common.keys import Keys

    with Server(*device) as server:
        page.open(server.url)
        wait_for(lambda: page.text("#link") == "Connected")
        wait_for(lambda: "Model" in page.text("#regions"), 30)
        wait_for(lambda: page.inked() > 0, 30)
        slider = page.element("f2")
        slider.send_keys(Keys.HOME)
        page.element("submit").send_keys(Keys.ENTER)
        wait_for(lambda: "there and back" in page.text("#own"), 30)
        assert page.text("#own .label") == LABEL
        status, reply = server.ask(ROW)
        assert (status, reply["outcome"]) == (200, "answered")
        assert reply["probabilities"] == expected(list(ROW.values()))
        status, reply = server.ask({**ROW, NAMES[2]: 1e6})
        assert (status, reply["outcome"], reply["error"]["code"]) == (200, "refused", "out_of_range")
        wait_for(lambda: "refused: out_of_range" in page.text("#last"))
        assert not page.complaints()
        assert server.stop() == 0


# --- what the page shows -----------------------------------------------------------------------------------


def test_a_row_arrives_with_its_answer_probabilities_and_round_trip(server, page):
    page.open(server.url)
    wait_for(lambda: page.inked() > 50)
    label = wait_for(lambda: page.text("#latest .label").removeprefix("None yet"))
    assert label in CLASSES
    assert re.search(r"\d+\.\d %", page.text("#latest .bars"))
    assert re.search(r"there and back, (as the data says|the data says)", page.text("#latest .why"))
    wait_for(lambda: int(page.text("#answered")) > 5)
    assert page.text("#sampling") == "Showing every answer."
    wait_for(lambda: "Model aaaaaaaa" in page.text("#regions"))
    assert page.js("performance.getEntriesByType('resource').every(({ name }) => name.startsWith(location.origin))")
    assert not page.complaints()


def test_by_keyboard_alone(server, page):
    """Tab to everything, move a slider, ask, pause the run."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page.open(server.url)
    wait_for(lambda: page.text("#link") == "Connected")

    def press(*keys):
        ActionChains(page.driver).send_keys(*keys).perform()

    def back(times):
        ActionChains(page.driver).key_down(Keys.SHIFT).send_keys(Keys.TAB * times).key_up(Keys.SHIFT).perform()

    visited = []
    for _ in range(9):
        press(Keys.TAB)
        visited.append(page.focused())
        ring = page.js("getComputedStyle(document.activeElement).outlineStyle")
        assert ring == "solid", visited
    assert visited == ["run", "axis-x", "axis-y", "classes", "f0", "f1", "f2", "f3", "submit"]
    back(2)
    assert page.focused() == "f2"
    before = float(page.text("output[for=f2]").split()[0])
    press(Keys.ARROW_RIGHT * 3)
    assert page.text("output[for=f2]") == f"{before + 0.3:.2g} cm"
    press(Keys.END)
    assert page.element("f2").get_attribute("aria-valuetext") == "7.4 cm"
    press(Keys.ENTER)  # a form is sent from any of its fields
    wait_for(lambda: page.text("#own .label") == CLASSES[2])
    assert "Outside of the training data" in page.text("#own .why")
    back(6)
    assert page.focused() == "run"
    press(Keys.SPACE)
    wait_for(lambda: page.text("#run") == "Start the run")
    wait_for(lambda: page.text("#per_second") == "0.0")
    press(Keys.ENTER)
    wait_for(lambda: page.text("#run") == "Pause the run")


def test_what_one_page_asks_all_pages_see_and_a_refusal_says_why(server, page):
    page.open(server.url)
    wait_for(lambda: page.text("#link") == "Connected")
    server.request("POST", "/run", '{"on": false}')
    time.sleep(0.5)  # what was pending has arrived
    status, reply = server.ask({**ROW, NAMES[2]: 1e6})
    assert (status, reply["outcome"], reply["error"]["code"]) == (200, "refused", "out_of_range")
    wait_for(lambda: page.text("#latest .label") == "refused: out_of_range")
    assert "is out of range" in page.text("#latest .why")


def test_a_new_model_has_its_own_regions(stand_in, server, page):
    page.open(server.url)
    wait_for(lambda: "Model aaaaaaaa" in page.text("#regions"))
    stand_in.model = "b" * 64
    wait_for(lambda: "Model bbbbbbbb" in page.text("#regions"))


LONG = "name" * 16  # as long as one may be, and nowhere to break it


def any_model(features, classes, seed=14):
    """A model file's contents, with seeded random weights."""
    random = Random(seed)
    odd = {0: "<b>markup</b> & more", 1: LONG}
    names = [{"name": odd.get(k, f"feature {k}"), "unit": "mm" if k % 2 else "", "min": 0.0,
              "max": float(10 ** (k % 4)), "accept": [-1e3, 1e5]} for k in range(features)]  # fmt: skip
    weights = [[random.gauss(0, 8 / features**0.5) / feature["max"] for feature in names] for _ in range(classes)]
    return {"target": "kind", "features": names, "classes": [f"class {k}" for k in range(classes - 1)] + [LONG], "weights": weights,
            "intercepts": [-sum(w * f["max"] / 2 for w, f in zip(row, names)) for row in weights]}  # fmt: skip


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("features, classes", [(2, 2), (4, 3), (13, 3), (64, 10)])
def test_any_model(tmp_path, page, features, classes, scheme, screen):
    with StandIn(tmp_path / "devices", any_model(features, classes)) as stand_in, Server(stand_in.folder, RATE="20") as server:
        page.open(server.url, screen, scheme)
        wait_for(lambda: page.text("#title") == "kind, live")
        assert "random rows within the training ranges" in page.text("#source")
        assert page.js("[document.querySelectorAll('#sliders input').length, document.querySelectorAll('#classes li').length,"
                       " document.querySelectorAll('#axis-x option').length]") == [features, classes, features]
        assert page.text("label[for=f0]") == "<b>markup</b> & more"
        assert page.js("arguments[0].scrollHeight > arguments[0].clientHeight", page.element("sliders")) == (features > 8)
        wait_for(lambda: "Model aaaaaaaa" in page.text("#regions"))
        page.element("submit").send_keys("\n")  # a click may miss it, while the first answers change the layout
        wait_for(lambda: "there and back" in page.text("#own"))
        assert page.js("document.querySelectorAll('#own dt').length") == min(classes, 6)
        legend = page.js("[...document.querySelectorAll('#classes svg')].map((svg) => svg.outerHTML)")
        assert len(set(legend)) == classes  # colour and shape together are each class's own
        wait_for(lambda: int(page.text("#answered")) > 60, 30)
        page.picture(f"{features}-features-{screen}-{scheme}")
        assert page.js("document.documentElement.scrollWidth <= innerWidth")
        assert not page.complaints()


def luminance(colour):
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear))


def contrast(a, b):
    """As WCAG 2.2 counts it, from 1 to 21."""
    low, high = sorted([luminance(a), luminance(b)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_colour_has_the_contrast_of_wcag_aa(scheme):
    """A mark on a region is told from it by its outline, of the text's colour: a region has at most 40 % of its class's."""
    css = (ROOT / "client/src/live/page.css").read_text()
    colours = dict(re.findall(r"--(\w[\w-]*): (#\w{6});", re.findall(r":root \{(.*?)\}", css, re.S)[scheme]))
    card, text = colours["card"], colours["text"]
    pairs = [("button", "button-text", 4.5)]
    pairs += [(name, behind, 4.5) for name in ("text", "muted") for behind in ("card", "page")]
    pairs += [(name, behind, 3) for name in [f"c{k}" for k in range(8)] for behind in ("card", "track")]
    pairs += [(name, "page", 3) for name in ("good", "bad")]
    found = {f"{a} on {b}": round(contrast(colours[a], colours[b]), 2) for a, b, least in pairs
             if contrast(colours[a], colours[b]) < least}  # fmt: skip
    for name in [f"c{k}" for k in range(8)]:
        mixed = [round(0.4 * int(colours[name][at : at + 2], 16) + 0.6 * int(card[at : at + 2], 16)) for at in (1, 3, 5)]
        if (seen := contrast(text, "#" + "".join(f"{part:02x}" for part in mixed))) < 3:
            found[f"outline on the region of {name}"] = round(seen, 2)
    assert not found


def test_regions_follow_the_sliders_and_the_axes(tmp_path, page):
    file = any_model(13, 3)
    with StandIn(tmp_path / "devices", file) as stand_in, Server(stand_in.folder) as server:
        server.request("POST", "/run", '{"on": false}')
        page.open(server.url)
        wait_for(lambda: "Model aaaaaaaa" in page.text("#regions"))
        shown = [int(page.js(f"document.getElementById('axis-{axis}').value")) for axis in "xy"]
        other = next(k for k in range(13) if k not in shown)
        pixels = "document.getElementById('surface').toDataURL()"
        before, asked = page.js(pixels), stand_in.arrived
        move = "(() => { const s = document.getElementById(`f${arguments[0]}`); s.value = s.%s; s.dispatchEvent(new Event('input')); })()"
        for end in ("max", "min", "max"):  # the debounce makes one grid of these
            page.js(move % end, other)
        wait_for(lambda: page.js(pixels) != before)
        cost = stand_in.arrived - asked
        assert 0 < cost <= 8
        page.js("(() => { const s = document.getElementById('axis-x'); s.value = arguments[0];"
                " s.dispatchEvent(new Event('change')); })()", other)
        wait_for(lambda: stand_in.arrived > asked + cost)


def test_another_model_rebuilds_the_page_without_a_reload(stand_in, server, page):
    page.open(server.url)
    wait_for(lambda: page.text("#title") == f"{TARGET}, live")
    page.js("window.same = true")
    stand_in.file, stand_in.model = any_model(13, 3), "c" * 64
    wait_for(lambda: page.text("#title") == "kind, live")
    wait_for(lambda: "Model cccccccc" in page.text("#regions"))
    wait_for(lambda: page.text("#latest .label") in stand_in.file["classes"])
    assert page.js("window.same") and page.js("document.querySelectorAll('#sliders input').length") == 13
    # A grid that was asked for while the model changed has no answer; the page asks anew.
    assert all("/regions" in text for text in page.complaints())


def test_a_lost_connection_is_shown_and_comes_back(stand_in, server, page):
    page.open(server.url)
    wait_for(lambda: page.text("#link") == "Connected")
    stand_in.disconnect()
    wait_for(lambda: page.text("#reconnected") == "1")
    wait_for(lambda: page.text("#link") == "Connected")
    assert server.stop() == 0
    wait_for(lambda: "The server is unreachable" in page.text("#link"))
    wait_for(lambda: stand_in.disconnected, 2)


def test_a_deleted_stack_is_reported_on_the_page_and_the_terminal(tmp_path, page):
    with StandIn(tmp_path) as broker, Server(tmp_path) as server:
        page.open(server.url)
        wait_for(lambda: page.text("#link") == "Connected")
        shutil.rmtree(tmp_path / "live")  # as `make destroy` does, which ends no connection of the local cloud
        wait_for(lambda: "The stack is gone: `make destroy` deleted it" in page.text("#link"))
        assert page.text("#run") == "Start the run"
        arrived = broker.arrived
        time.sleep(1)
        assert broker.arrived < arrived + 3  # of five, if the run went on
        assert "make deploy" in server.process.stderr.readline()


# --- for everybody -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def axe():
    """axe-core's source, of one version, as npm has it."""
    if not shutil.which("npm"):
        pytest.skip("no npm here, which brings axe-core: apt install npm")
    tools = ROOT / "target/tools"
    tools.mkdir(parents=True, exist_ok=True)
    archive = tools / f"{AXE.replace('@', '-')}.tgz"
    if not archive.exists():
        subprocess.run(["npm", "pack", "--silent", AXE], cwd=tools, check=True, stdout=subprocess.DEVNULL)
    data = archive.read_bytes()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == AXE_SHA512, f"{archive} is not what npm signed"
    with tarfile.open(fileobj=io.BytesIO(data)) as package:
        return package.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_accessibility_violation_no_shift_no_sideways_scrolling(brisk, page, axe, scheme, screen):
    page.open(brisk.url, screen, scheme)
    page.driver.execute_script(
        "window.shifts = []; new PerformanceObserver((list) => { for (const { hadRecentInput, value, sources } of"
        " list.getEntries()) if (!hadRecentInput) window.shifts.push([value, ...sources.map(({ node }) =>"
        " (node?.outerHTML ?? node?.textContent)?.slice(0, 80))]); }).observe({ type: 'layout-shift', buffered: true })"
    )
    wait_for(lambda: "Model" in page.text("#regions"))  # a shift soon after a click would not count
    page.element("submit").click()
    wait_for(lambda: "there and back" in page.text("#own"))
    wait_for(lambda: int(page.text("#answered").replace(",", "")) > 60, 30)
    page.picture(f"{screen}-{scheme}")
    page.driver.execute_script(axe)
    found = page.later("axe.run({ resultTypes: ['violations', 'incomplete'] })")
    for kind in ("violations", "incomplete"):
        problems = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found[kind]]
        assert not problems, kind
    assert len(found["passes"]) > 15
    assert page.js("document.documentElement.scrollWidth <= innerWidth")
    shifts = page.js("window.shifts")
    assert sum(value for value, *_ in shifts) < 0.02, shifts
    assert not page.complaints()


RINGS = """(() => {
  window.radii = [];
  const arc = CanvasRenderingContext2D.prototype.arc;
  CanvasRenderingContext2D.prototype.arc = function (x, y, radius, ...more) {
    if (this.canvas.id === "sparks") window.radii.push(radius);
    return arc.call(this, x, y, radius, ...more);
  };
})()"""


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_rings_grow_unless_motion_is_reduced(brisk, page, motion):
    page.open(brisk.url, motion=motion)
    page.js(RINGS)
    wait_for(lambda: page.js("window.radii.length") > 100)
    radii = page.js("window.radii")
    grown = max(radii) - min(radii)
    assert grown == 0 if motion == "reduce" else grown > 5, (min(radii), max(radii))
    assert not page.complaints()


# --- how much ----------------------------------------------------------------------------------------------


def percentiles(values):
    values = sorted(values)
    return {f"p{q}": round(values[min(len(values) - 1, len(values) * q // 100)], 1) for q in (50, 95, 100)}


def report(name, numbers):
    """For whoever runs pytest with -s, and in target/live."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    (SCREENSHOTS / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
    print(f"\n{name}: {json.dumps(numbers)}")


def test_at_50_a_second_every_answer_is_drawn(brisk, page):
    page.open(brisk.url)
    wait_for(lambda: page.js("window.live.drawn") > size(100, 600), 30)
    wait_for(lambda: page.text("#sampling") == "Showing every answer.")
    report("50-a-second", {"ms_from_answer_to_pixel": percentiles(page.js("window.live.latencies"))})


FRAMES = """new Promise((done) => {
  const gaps = []; let last = performance.now(); const end = last + %d;
  requestAnimationFrame(function frame() {
    const now = performance.now(); gaps.push(now - last); last = now;
    now < end ? requestAnimationFrame(frame) : done(gaps);
  });
})"""
CLICK = """new Promise((done) => {
  const own = document.querySelector('#own .why'), begin = performance.now();
  new MutationObserver((_, seen) => { seen.disconnect(); done(performance.now() - begin); })
    .observe(own, { childList: true, characterData: true, subtree: true });
  document.getElementById('submit').click();
})"""


def test_at_500_a_second_the_page_says_that_it_samples_and_still_answers_who_asks(stand_in, page):
    with Server(stand_in.folder, RATE="500") as server:
        page.open(server.url)
        wait_for(lambda: page.text("#sampling").startswith("Showing 1 in"))
        page.driver.execute_script("window.live.latencies.length = 0")
        frames = percentiles(page.later(FRAMES % size(1000, 5000)))
        before = page.js("window.live.drawn")
        clicks = percentiles([page.later(CLICK) for _ in range(size(5, 20))])  # each ends with its answer
        assert page.text("#own .label") in CLASSES
        arrived, drawn = page.js("[window.live.arrived, window.live.drawn]")
        assert before < drawn < arrived, (before, drawn, arrived)
        numbers = {
            "answers_a_second": float(page.text("#per_second")), "sampling": page.text("#sampling"),
            "ms_between_frames": frames, "ms_from_click_to_answer": clicks,
            "ms_from_answer_to_pixel": percentiles(page.js("window.live.latencies")), "server_mb": server.memory(),
        }  # fmt: skip
        page.picture("500-a-second")
        report("500-a-second", numbers)


def test_what_a_page_does_not_fetch_is_not_kept_for_it(stand_in):
    """Were it kept, a hundred pages would cost the server 8 MB a second, and none would miss anything."""
    with Server(stand_in.folder, RATE="500") as server:
        before = server.memory()
        deaf = [listener(server, narrow=True) for _ in range(100)]

        def at_rest():
            already = server.memory()
            time.sleep(2)
            return server.memory() - already < 2

        wait_for(at_rest, 30, "memory that grows less than 2 MB in 2 s")
        grown = server.memory() - before
        # A message tells of some 16 answers; the first one after the pause of all that were missed.
        heard, missed, deadline = b"", 0, time.monotonic() + 15
        while missed < 200:
            assert time.monotonic() < deadline, "nothing was missed"
            heard = heard[-100:] + deaf[0].recv(1 << 16)
            missed = max([missed, *map(int, re.findall(rb'"of":(\d+),', heard))])
        report("not-fetched", {"missed_in_one_go": missed, "server_mb": grown})
        for page in deaf:
            page.close()
        assert grown < 20


# --- who is let in -----------------------------------------------------------------------------------------


def test_only_our_own_page_may_ask(server):
    assert server.request("GET", "/")[0] == 200
    assert server.ask(ROW)[1]["outcome"] == "answered"
    assert server.request("GET", "/", Host="evil.example")[0] == 421
    for path in ("/", "/page.js", "/events", "/?token=" + "0" * 32):
        assert server.request("GET", path, Cookie=None)[0] == 403, path  # nor whoever else is on this machine
    assert server.ask(ROW, Cookie=None)[1]["error"]["code"] == "no_token"
    foreign = [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}]
    for changes in [*foreign, {"Origin": None}]:
        status, reply = server.ask(ROW, **changes)
        assert (status, reply["error"]["code"]) == (403, "wrong_origin"), changes
    for changes in foreign:
        assert server.request("GET", "/events", **changes)[0] == 403, changes
    assert server.ask(ROW, Content_Type="text/plain")[0] == 415
    for wrong in ({**ROW, "more": 1}, {NAMES[0]: 5.1}):
        status, reply = server.ask(wrong)
        assert (status, reply["error"]["code"]) == (400, "wrong_row")
    assert server.ask({NAMES[0]: "5.1"})[1]["error"]["code"] == "malformed_request"
    assert server.request("POST", "/ask", "x" * 100_000)[0] == 413
    assert server.request("GET", "/ask")[0] == 405
    # It is not reached from outside.
    with pytest.raises(OSError):
        socket.create_connection((own_address(), server.port), 1)


FOREIGN = """<!doctype html><title>foreign</title><img src="{url}events"><script>
  window.heard = []; const events = new EventSource("{url}events", {{ withCredentials: true }});
  events.onopen = events.onmessage = () => heard.push("open"); events.onerror = () => heard.push("error");
  fetch("{url}ask", {{ method: "POST", mode: "no-cors", credentials: "include", body: "{{}}" }});
</script>"""


def test_a_page_of_another_port_sends_no_requests_though_the_browser_has_our_cookie(stand_in, server, page):
    page.open(server.url)
    wait_for(lambda: stand_in.arrived > 5)  # as our own page does

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(FOREIGN.format(url=f"http://127.0.0.1:{server.port}/").encode())

        log_message = lambda *_: None  # noqa: E731

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page.driver.get(f"http://127.0.0.1:{other.server_port}/")
        assert page.text("title") == "foreign"
        wait_for(lambda: page.js("window.heard.length"))
        time.sleep(1)  # what our own page had pending
        before = stand_in.arrived
        time.sleep(2)
        assert set(page.js("window.heard")) == {"error"} and stand_in.arrived == before
        other.shutdown()


def test_the_command_that_opens_the_browser_does_not_show_the_token(stand_in, tmp_path):
    """Everybody on the machine sees it in the list of processes."""
    browser = tmp_path / "bin/xdg-open"
    browser.parent.mkdir()
    browser.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called.new && mv {tmp_path}/called.new {tmp_path}/called\n')
    browser.chmod(0o755)
    with Server(stand_in.folder, NO_BROWSER="", PATH=f"{browser.parent}:{os.environ['PATH']}") as server:
        called = wait_for(lambda: (tmp_path / "called").exists() and (tmp_path / "called").read_text().strip())
        assert server.url.partition("?token=")[2] not in called
        door = Path(called)
        assert door.stat().st_mode & 0o777 == 0o600 and server.url in door.read_text()
        assert server.stop() == 0 and not door.exists()


def test_every_answer_carries_the_policy(server):
    for path in ("/", "/page.css", "/page.js", "/icon.svg", "/nothing"):
        _, headers, _ = server.request("GET", path)
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'"), path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_room_may_ask_and_only_the_owner_may_pause(stand_in, page):
    with Server(stand_in.folder, ROOM="1") as server:
        room = re.search(r"http://\S+\?token=([0-9a-f]{32})$", server.process.stdout.readline().strip())
        token = room.group(1)
        assert token not in server.url
        for path in ("/", "/page.js", "/events", "/?token=" + "0" * 32):
            assert server.request("GET", path, Cookie=None)[0] == 403, path
        assert server.ask(ROW, Cookie=None)[1]["error"]["code"] == "no_token"
        status, headers, _ = server.request("GET", f"/?token={token}", Cookie=None)
        assert status == 200
        cookie = f"live_token_{server.port}={token}"
        assert headers["set-cookie"] == f"{cookie}; HttpOnly; SameSite=Strict; Path=/"
        pause = "POST", "/run", '{"on": false}'
        for host in (own_address(), "127.0.0.1"):  # a port forward comes from loopback
            assert server.ask(ROW, host=host, Cookie=cookie)[0] == 200
            status, _, reply = server.request(*pause, host=host, Cookie=cookie)
            assert (status, json.loads(reply)["error"]["code"]) == (403, "not_the_owner")
            assert server.request(*pause, host=host)[0] == 200
        for address, may_pause in ((f"http://127.0.0.1:{server.port}/?token={token}", False), (server.url, True)):
            page.open(address)
            wait_for(lambda: page.text("#link") == "Connected")
            assert page.element("run").is_enabled() == may_pause
            assert "token" not in page.driver.current_url
            page.driver.refresh()
            wait_for(lambda: page.text("#link") == "Connected")


def test_too_many_at_once_are_told_so(stand_in, server):
    stand_in.delay = 2
    with ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: server.ask(ROW), range(20)))
    assert sorted(status for status, _ in replies) == [200] * 16 + [429] * 4
    busy = [body["error"] for status, body in replies if status == 429]
    assert busy[0] == {
        "code": "busy", "message": "16 requests from pages are pending already: try again in a moment"
    }  # fmt: skip


def test_ctrl_c_ends_it_at_once_whoever_listens(stand_in):
    with Server(stand_in.folder) as server:  # as soon as it has said where it is
        assert server.stop() == 0
    with Server(stand_in.folder) as server:
        stand_in.disconnected = False
        with listener(server) as page:
            heard = b""
            while b"event: answers" not in heard or b"event: about" not in heard:
                heard += page.recv(1 << 16)
            assert server.stop() == 0
            while data := page.recv(1 << 16):
                heard += data
            assert heard.endswith(b"\r\n0\r\n\r\n")  # the stream was ended, not broken off
    wait_for(lambda: stand_in.disconnected, 2)
