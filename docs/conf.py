"""Settings of the documentation: `python -m sphinx -W docs docs/_build/html`."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS / "_ext"), str(DOCS.parent)]

import zfnet_jax  # noqa: E402

project = "zfnet_jax"
release = version = zfnet_jax.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "commands",
    "names",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_in_temp = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_custom_sections = []
default_role = "name"
napoleon_use_ivar = True
napoleon_attr_annotations = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# The inventories list the names that are linked to, so that a build needs no network.
intersphinx_mapping = {
    name: (address, f"inventories/{name}.txt")
    for name, address in {
        "flax": "https://flax.readthedocs.io/en/stable/",
        "jax": "https://docs.jax.dev/en/latest/",
        "numpy": "https://numpy.org/doc/stable/",
        "python": "https://docs.python.org/3/",
    }.items()
}
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", ".*"),  # any code in single backticks
    # What only a signature names: axes, type variables, other packages' types.
    ("py:class", r".*['.*].*|_\w+|[A-Z]\w*|ndarray|.*\._\w+|(jaxtyping|optax)\..*"),
]

html_theme = "pydata_sphinx_theme"
html_title = "zfnet_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_context = {"default_mode": "auto"}
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "github_url": "https://github.com/zfnet-jax/zfnet_jax",
    # Code of 88 columns and wide tables need the width on all other pages.
    "secondary_sidebar_items": {
        "howto/*": ["page-toc"],
        "reference/*": ["page-toc"],
        "howto/from_captum": [],
        "howto/from_tf_keras_vis": [],
    },
    "footer_start": [],
    "footer_end": [],
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
