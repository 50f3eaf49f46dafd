"""The site is made from the project's own files: this folder is the project's, and each page lies where its file does, so
that relative links need no change. A file that a page names in `code` becomes a page too, and its name a link to it.
"""

import json
import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.parsers import Parser
from sphinx import addnodes

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    "README.md", "TROUBLESHOOTING.md", "CONTRIBUTING.md", "teach/README.md", "teach/glossary.md",
    "client/README.md", "deploy/README.md", "deploy/AWS.md", "data/README.md",
    *sorted(f"{path.relative_to(ROOT)}" for path in ROOT.glob("notebooks/**/0*.ipynb")),
]  # fmt: skip
LANGUAGES = {".rs": "rust", ".py": "python", ".json": "json", ".yaml": "yaml", ".csv": "text"}


def named(page, name):
    """The project's file of this name, if it has one: as seen from the page, or from the top."""
    for folder in (os.path.dirname(page), ""):
        path = os.path.normpath(os.path.join(folder, name))
        if Path(path).suffix in LANGUAGES and not path.startswith("target") and (ROOT / path).is_file():
            return path


def sources(page):
    names = re.findall(r"[`(]([\w./-]+\.\w+)[`)]", (ROOT / page).read_text())
    return {path for name in names if (path := named(page, name))}


project = "From a notebook to live predictions, in Rust"
html_title = project
language = "en"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = [*PAGES, *sorted(set().union(*map(sources, PAGES)))]
exclude_patterns = ["target", ".venv", ".git"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", **dict.fromkeys(LANGUAGES, "source")}
myst_heading_anchors = 4  # as GitHub makes them
nb_execution_mode = "off"  # the committed outputs, which `make test` compares
highlight_language = "text"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme = "furo"
html_favicon = "../../client/src/live/icon.svg"
html_static_path = ["site.css", "site.js"]
html_css_files = ["site.css"]
html_js_files = ["site.js"]
html_show_search_summary = False  # a page from a file may not read another one, which is where summaries come from
html_copy_source = False
html_show_copyright = False
html_permalinks = False


class Source(Parser):
    """A file of the project as a page of its own: looked up by link, not by search."""

    supported = ("source",)

    def parse(self, inputstring, document):
        page = document.settings.env.docname
        path = next(p for suffix in LANGUAGES if (p := page + suffix) in include_patterns)
        document.settings.env.metadata[page] |= {"orphan": True, "nosearch": True}
        section = nodes.section("", nodes.title(path, path), ids=["file"])
        section += nodes.literal_block(inputstring, inputstring, language=LANGUAGES[Path(path).suffix])
        document += section


def link_files(app, doctree):
    here = app.env.docname
    if here.startswith("notebooks/solutions/"):
        app.env.metadata[here]["orphan"] = True  # no entry in the contents gives them away; each chapter links its own
    page = os.path.relpath(app.env.doc2path(here), ROOT)
    for code in list(doctree.findall(nodes.literal)):
        path = named(page, code.astext())
        if path in include_patterns and isinstance(code.parent, (nodes.paragraph, nodes.entry)):
            target = "/" + os.path.splitext(path)[0]
            link = addnodes.pending_xref(refdomain="std", reftype="doc", refexplicit=True, reftarget=target, refdoc=here)
            code.replace_self(link)
            link += code


def complete(app, page, text):
    """Give the first page the table of contents, and results that are data (JSON) a text, which is how pages show them."""
    if page == root_doc:
        app.env.note_dependency("teach/site/contents.md")
        text[0] += (ROOT / "teach/site/contents.md").read_text()
    elif page.startswith("notebooks/0"):
        notebook = json.loads(text[0])
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
            data = output.get("data", {})
            if "application/json" in data:
                data["text/plain"] = json.dumps(data.pop("application/json"), indent=2)
        text[0] = json.dumps(notebook)


def complete_sidebar(app, page, template, context, doctree):
    """Sphinx lists only its own pages: the slides come last. A screen reader wants the level of a heading."""
    context["furo_navigation_tree"] = context["furo_navigation_tree"].replace('role="heading"', 'role="heading" aria-level="2"')
    for name in ("slides", "handout"):
        link = f'<a class="reference internal" href="{context["pathto"](f"teach/{name}.html", 1)}">{name.title()}</a>'
        context["furo_navigation_tree"] += f'<ul><li class="toctree-l1">{link}</li></ul>'


def finish(app, error):
    """What Sphinx does not make: the slides beside their figures, and the page that a server looks for."""
    if not error:
        out = Path(app.outdir)
        for name in ("slides", "handout"):
            shutil.copy(ROOT / f"target/{name}.html", out / "teach")
        for figure in ("teach/path.svg", "notebooks/regions.svg"):
            shutil.copy(ROOT / figure, out / figure)
        shutil.copy(out / f"{root_doc}.html", out / "index.html")


def setup(app):
    app.add_source_parser(Source)
    app.connect("source-read", complete)
    app.connect("doctree-read", link_files)
    app.connect("html-page-context", complete_sidebar, priority=900)  # after the theme, which makes the tree
    app.connect("build-finished", finish)
