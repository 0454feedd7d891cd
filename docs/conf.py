"""How the site is built: `make docs`. It needs no network."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import gather
import reference

import innerloop

project, author, release = "innerloop", "the authors of innerloop", innerloop.__version__
copyright = author  # the name that Sphinx has for it
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]

html_theme, html_title, html_copy_source = "furo", f"innerloop {release}", False
html_static_path, html_css_files = ["_static"], ["wide.css"]

default_role = "any"  # what docstrings put into single backticks is a name
autodoc_member_order = "bysource"
autodoc_typehints_format, python_use_unqualified_type_names = "short", True
autodoc_inherit_docstrings = False
maximum_signature_line_length = 90
# Types of others, and the options of presets, which are the learner's, have no page here.
OTHERS = r"(torch|collections|contextlib|pathlib|types|typing|typing_extensions|pd)\..*|Tensor|Axes|Figure"
PRIVATE = (
    r"innerloop\..*\.(Options|Option|Cases|Drawing|Shared|Stateless|Draws|Step|Record)"
    r"|Source|Distribution|FunctionSource|Frame|Drawing|Stateless|dict\[str|tuple\[str"
)
nitpicky = True
nitpick_ignore_regex = [("py:class", OTHERS), ("py:class", PRIVATE), ("py:exc", "UnfitError")]
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True  # or the attributes of classes would be described twice
myst_enable_extensions, myst_heading_anchors = ["colon_fence"], 3

gather.pages()


def setup(app: Any) -> None:
    app.connect("source-read", gather.as_on_the_site)
    app.connect("autodoc-skip-member", reference.left_out)
