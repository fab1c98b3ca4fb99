"""How the site is built: ``make docs``."""

import sys
from pathlib import Path

from jhlauncher import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "jhlauncher"
author = "jhlauncher contributors"
version = release = __version__

extensions = [
    "autodoc_traits",
    "myst_parser",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "http_api",
    "settings",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
nitpicky = True
nitpick_ignore = [("py:class", "os.PathLike"), ("py:class", "collections.abc.Iterable")]  # Python's own
default_role = "code"  # as docstrings and traits' help have it
highlight_language = "text"

myst_heading_anchors = 4

autodoc_use_legacy_class_based = True  # autodoc_traits needs it
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_numpy_docstring = False

copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = f"jhlauncher {version}"
html_theme_options = {
    "navbar_center": [],
    "footer_start": ["copyright"],
    "footer_end": [],
}
project_copyright = author
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"**": ["all-pages"]}
html_show_sourcelink = False
html_copy_source = False
