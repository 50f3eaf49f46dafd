"""The workshop as pages that need no server and no network: `make site` (https://www.sphinx-doc.org/en/master/usage/configuration.html).

The pages are the files that you read on GitHub, and nothing is copied: the source folder is the project itself. A file that
a page names in `code` or links to, such as `iris_fn/src/model.rs`, becomes a page too, and its name a link to it.
"""

import json
import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from docutils.parsers import Parser
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

project = html_title = "From a notebook to live predictions"
extensions = ["myst_nb"]
root_doc = "README"
PAGES = ["*.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "*/README.md", "deploy/AWS.md", "teach/*.md"]
LANGUAGES = {".rs": "rust", ".py": "python", ".json": "json", ".yaml": "yaml", ".csv": "text"}


def named(page: Path, name: str) -> str | None:
    """The project's file of this name, if it has one: as seen from the page, or from the top."""
    for folder in (page.parent, ROOT):
        path = Path(os.path.normpath(folder / name))
        if path.suffix in LANGUAGES and path.is_file() and ROOT / "target" not in path.parents:
            return path.relative_to(ROOT).as_posix()
    return None


FILES = {
    path
    for pattern in PAGES
    for page in ROOT.glob(pattern)
    for name in re.findall(r"[`(]([\w./-]+\.\w+)[`)]", page.read_text())
    if (path := named(page, name))
}
include_patterns = [*PAGES, *sorted(FILES)]
exclude_patterns = ["target", ".venv", "teach/slides.md", "teach/handout.md"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", **dict.fromkeys(LANGUAGES, "source")}
# What the project holds is shown: no notebook runs here.
nb_execution_mode = "off"
highlight_language = "text"
# A dollar is money here, and a link to a heading works as on GitHub.
myst_enable_extensions: list[str] = []
myst_heading_anchors = 4
html_theme = "furo"
html_show_copyright = html_show_sphinx = html_copy_source = False
html_static_path = ["site.css", "site.js"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_use_index = html_permalinks = False
# A page from a file may not read another one, which is where a summary comes from.
html_show_search_summary = False
html_favicon = "../../client/src/live/icon.svg"
# Both pass WCAG 2's contrast, in code and on its background.
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

# The order of the pages, which the front page has in words.
CONTENTS = """

```{toctree}
:hidden:
:caption: Chapters
:glob:

notebooks/*
```
```{toctree}
:hidden:
:caption: At hand

teach/glossary
TROUBLESHOOTING
client/README
deploy/AWS
deploy/README
data/README
CONTRIBUTING
teach/README
```
```{toctree}
:hidden:
:caption: Solutions
:glob:

notebooks/solutions/*
```
"""


class Source(Parser):
    """A file of the project as a page: found by its links, and not by a search."""

    supported = ("source",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        env = document.settings.env
        path = os.path.relpath(env.doc2path(env.docname), ROOT)
        env.metadata[env.docname] |= {"orphan": True, "nosearch": True}
        section = nodes.section("", nodes.title(path, path), ids=["file"])
        section += nodes.literal_block(inputstring, inputstring, language=LANGUAGES[Path(path).suffix])
        document += section


def link_files(app: Sphinx, page: nodes.document) -> None:
    here = app.env.docname
    for code in list(page.findall(nodes.literal)):
        path = named(Path(app.env.doc2path(here)), code.astext())
        if path in FILES and isinstance(code.parent, (nodes.paragraph, nodes.entry)):
            target = "/" + os.path.splitext(path)[0]
            link = addnodes.pending_xref(refdomain="std", reftype="doc", refexplicit=True, reftarget=target, refdoc=here)
            code.replace_self(link)
            link += code


def complete(app: Sphinx, page: str, source: list[str]) -> None:
    """The front page gets the contents, and a result that is data (JSON) a text: that is what pages can show."""
    if page == root_doc:
        source[0] += CONTENTS
    elif str(app.env.doc2path(page)).endswith(".ipynb"):
        notebook = json.loads(source[0])
        for output in (output for cell in notebook["cells"] for output in cell.get("outputs", [])):
            if "application/json" in output.get("data", {}):
                output["data"]["text/plain"] = json.dumps(output["data"].pop("application/json"), indent=2)
        source[0] = json.dumps(notebook)


def add_slides(_app: Sphinx, _page: str, _template: str, context: dict, _tree: object) -> None:
    """Sphinx lists only its own pages: the slides are the last ones of the sidebar."""
    context["furo_navigation_tree"] += '<p class="caption" role="heading"><span class="caption-text">In the room</span></p>'
    for name in ("slides", "handout"):
        link = f'<a class="reference internal" href="{context["pathto"](f"teach/{name}.html", 1)}">{name.title()}</a>'
        context["furo_navigation_tree"] += f'<ul><li class="toctree-l1">{link}</li></ul>'


def add_files(app: Sphinx, error: Exception | None) -> None:
    """The front page by the name that browsers ask for; the slides, where they find their pictures."""
    if error:
        return
    shutil.copy(app.outdir / "README.html", app.outdir / "index.html")
    for name in ("slides.html", "handout.html"):
        shutil.copy(ROOT / "target" / name, app.outdir / "teach")
    for name in ("notebooks/regions.svg", "teach/path.svg"):
        shutil.copy(ROOT / name, app.outdir / name)


def setup(app: Sphinx) -> None:
    # Sphinx keeps what it has read, and looks for changes in settings, not in this file's functions.
    app.add_config_value("conf", Path(__file__).read_text(), "env")
    app.add_source_parser(Source)
    app.connect("source-read", complete)
    app.connect("doctree-read", link_files)
    app.connect("html-page-context", add_slides, priority=900)  # after the theme, which makes the tree
    app.connect("build-finished", add_files)
