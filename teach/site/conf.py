"""The workshop as pages that need no server and no network: `make site` (https://www.sphinx-doc.org/en/master/usage/configuration.html).

The pages are the files that you read on GitHub, and nothing is copied: the source folder is the project itself.
"""

import shutil
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]

project = html_title = "From a notebook to live predictions"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["*.md", "notebooks/*.ipynb", "notebooks/solutions/*.ipynb", "*/README.md", "deploy/AWS.md", "teach/*.md"]
exclude_patterns = ["target", ".venv", "teach/slides.md", "teach/handout.md"]
# What the project holds is shown: no notebook runs here.
nb_execution_mode = "off"
highlight_language = "text"
# Results that `run.py` collects; they are in a cell's text as well.
suppress_warnings = ["mystnb.unknown_mime_type"]
# A dollar is money here, and a link to a heading works as on GitHub.
myst_enable_extensions: list[str] = []
myst_heading_anchors = 4
html_theme = "furo"
html_show_copyright = html_show_sphinx = html_copy_source = False
html_static_path = ["site.css", "site.js"]
html_css_files, html_js_files = ["site.css"], ["site.js"]
html_use_index = False
# Both pass WCAG 2's contrast, in code and on its background.
pygments_style, pygments_dark_style = "a11y-high-contrast-light", "a11y-high-contrast-dark"

# The order of the pages, which the front page has in words.
CONTENTS = """
<p><a href="teach/slides.html">Slides</a> · <a href="teach/handout.html">Handout, one page</a></p>

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


def add_contents(_: Sphinx, page: str, source: list[str]) -> None:
    if page == root_doc:
        source[0] += CONTENTS


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
    app.connect("source-read", add_contents)
    app.connect("build-finished", add_files)
