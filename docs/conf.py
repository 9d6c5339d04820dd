"""Configure Sphinx: MyST pages, tutorials run by sphinx-gallery, and no requests to other hosts from a page."""

import os
import sys

import sbnref

DOCS = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [DOCS, os.path.dirname(DOCS)]  # the modules beside this file, and benchmarks

project = "sbnref"
author = "the sbnref authors"
copyright = "2026, the sbnref authors"
version = release = sbnref.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
    "sphinxcontrib.bibtex",
]
nitpicky = True
nitpick_ignore_regex = [
    ("py:func", r"(compare|diagnose|monitor)"),  # within the module of the same name
    # packages whose pages Sphinx does not read at build time
    ("py:.*", r"(torch|collections|numpy|typing|pathlib|contextlib)\..*"),
    ("py:class", r"(Tensor|ProcessGroup|DeviceMesh|Group|Path|T|nn\.Module|optional)"),
]

myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "alpha"

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings give shapes and dtypes; types cannot

html_theme = "furo"
html_title = "sbnref"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("figures.js", {"defer": "defer"})]
templates_path = ["_templates"]
exclude_patterns = [
    "_build",
    "_generated",
    "learn/**/*.ipynb",
    "sg_execution_times.rst",
    "learn/sg_execution_times.rst",
]
copybutton_exclude = ".linenos, .gp, .go"

sphinx_gallery_conf = {
    "examples_dirs": "../tutorials",
    "gallery_dirs": "learn",
    "filename_pattern": r"/\d\d_\w+\.py",
    "ignore_pattern": r"(train|__init__)\.py|solutions/|kernels/",
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("gallery_style.apply",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "remove_config_comments": True,
    "show_memory": False,
    "min_reported_time": 1,
    "plot_gallery": os.environ.get("SBNREF_DOCS_RUN", "1") == "1",
}


def setup(app: object) -> None:
    """Register the writers of generated pages, which run before Sphinx reads any page."""
    import benchmark_results
    import channels_last
    import drawings
    import faults
    import reach
    import recordings

    for page in (benchmark_results, channels_last, drawings, faults, reach, recordings):
        app.connect("builder-inited", page.write)
    app.add_directive("player", recordings.Player)
    app.connect("html-page-context", recordings.add_player)
