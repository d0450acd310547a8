"""How a page is put together: one base template, one style sheet, one script, and a policy that allows nothing else.

A page is a single file that asks for nothing from outside. Its content-security policy names the style sheet and the
script by their SHA-256 and lets pictures come from ``data:`` addresses only, so a browser runs and loads nothing that
was smuggled in through a file name. For the same reason templates use no ``style`` attributes and escape every value.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pickglass.data.files import written_whole

__all__ = ["PAGE_ERRORS", "environment", "render", "rendered", "write_page"]

_FOLDER = Path(__file__).parent

PAGE_ERRORS = "backslashreplace"
"""How bytes of a file name that are no UTF-8 are encoded in a page: as escapes such as ``\\udcff``."""


@lru_cache(maxsize=1)
def environment() -> Environment:
    """Return the templates' environment. Every value is escaped, and a name that is not given is an error."""
    templates = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    # Own files, which are markup; everything else is escaped.
    templates.globals |= {"style": Markup(style), "script": Markup(script), "policy": policy}
    return templates


def render(template: str, values: Mapping[str, object]) -> str:
    """Return a template filled with values.

    Args:
        template: name of a file in ``templates/``.
        values: what the template asks for.
    """
    return environment().get_template(template).render(values)


def rendered(text: str) -> str:
    """Return text that :func:`render` made before as markup, so that a page that holds it does not escape it again."""
    return Markup(text)


def write_page(target: Path, template: str, values: Mapping[str, object]) -> Path:
    """Fill a template and write the page, whole or not at all; return its path.

    The page is written as it is rendered, so a value may be an iterator over more than the memory holds.

    Args:
        target: HTML file.
        template: name of a file in ``templates/``.
        values: what the template asks for.
    """
    with (
        written_whole(target) as temporary,
        temporary.open("w", encoding="utf-8", errors=PAGE_ERRORS, newline="\n") as file,
    ):
        file.writelines(environment().get_template(template).generate(values))
    return target


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
