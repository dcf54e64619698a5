"""What every HTML page of radglint shares: one file, its own style and script only, nothing loaded, nothing sent."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files

DISCLAIMER = "For research use. Not a medical device: do not use it to diagnose or to treat."


def html_document(title: str, header: str, body: str, footer: str, style: str, script: str) -> str:
    """A whole page.

    Args:
        title: plain text.
        header: HTML below the heading, above `main`.
        body: HTML of `main`.
        footer: HTML.
        style: CSS, the only one that the page may use.
        script: JavaScript, the only one that the page may run.

    Returns:
        HTML with a content security policy that allows data URIs as pictures and refuses everything from elsewhere.
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1><p class="quiet">{escape(DISCLAIMER)}</p>'
        f"{header}</header>\n<main>\n{body}\n</main>\n<footer>{footer}</footer>\n<script>{script}</script>\n</body>\n</html>\n"
    )


def asset(name: str) -> str:
    """A text file of `radglint/data`."""
    return files("radglint").joinpath("data", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
