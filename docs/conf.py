"""How Sphinx makes the pages: `nox -s docs`. No framework is imported, and nothing is fetched."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

project = "resnet-tabs"
copyright = "2026, the resnet-tabs authors"
html_title = "resnet-tabs"
extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx_copybutton",
    "katex_build",
    "tabs",
    "measured",
    "run",
    "held",
    "api",
    "side_by_side",
    "explorer",
    "drawings",
    "notebooks",
    "slim",
    "fifth",
    "families",
]
exclude_patterns = ["_build", "_ext", "_vendor"]
templates_path = ["_templates"]
myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nitpicky = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css", "side_by_side.css", "explorer.css"]
html_js_files = ["site.js", "side_by_side.js", "explorer.js"]
html_math_renderer = "katex"
html_copy_source = False
html_use_index = False  # the search finds more
html_domain_indices = False
html_show_sourcelink = False
html_show_search_summary = False  # its fetch() fails on file://
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
