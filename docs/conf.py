"""How `make docs` builds these pages; they are Markdown that a code host shows as it is, too."""

from importlib.metadata import version as version_of

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "cxlib"
author = "The cxlib developers"
copyright = author  # noqa: A001 - Sphinx's name
version = release = version_of("cxlib")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sphinx_design"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "cxlib"
html_static_path = ["_static"]
html_css_files = ["cxlib.css"]
html_theme_options = {"navigation_with_keys": True}
# Formulas are MathML, which browsers draw themselves: a page asks no other host for a script.
html_math_renderer = "mathml"

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Tutorials run each time: what they show is what the code does now.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600  # of a cell; on a quiet machine none takes more than some seconds
nb_output_stderr = "remove"  # progress, and what other packages say of themselves

# Docstrings write names in single backticks, and types stand in the signatures.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
python_maximum_signature_line_length = 100
# Nothing is asked of the network while the pages are built, so that other libraries' names are no links.
nitpick_ignore_regex = [(r"py:.*", r"(?!cxlib).*|cxlib\..*\.(T|_\w+)")]


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Draw formulas as MathML."""
    app.add_html_math_renderer("mathml", inline_renderers=(_inline, None), block_renderers=(_block, None))
