"""Reads a page as a browser would, strictly: tags close in order, attributes and ids are there once."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = ("meta", "link", "img", "input")
DRAWN = ("path", "rect", "circle")  # of an SVG: closed at once


class PageReader(HTMLParser):
    """The tags, the words and the scripts and style sheets of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.code: dict[str, list[str]] = {"style": [], "script": []}
        assert page.startswith("<!DOCTYPE html>\n")
        self.feed(page)
        self.close()
        assert not self.open
        ids = [attrs["id"] for _, attrs in self.tags if "id" in attrs]
        assert len(ids) == len(set(ids)), ids

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in DRAWN, f"<{tag}> is not closed"
        self._keep(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in DRAWN, f"<{tag}/>"
        self._keep(tag, attrs)

    def _keep(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> has an attribute twice: {names}"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.code:
            self.code[self.open[-1]].append(data)
        else:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every element of this name."""
        return [attrs for name, attrs in self.tags if name == tag]

    def pictures(self) -> list[dict[str, str]]:
        """The attributes of every picture that can be enlarged."""
        return [attrs for attrs in self.all("img") if "width" in attrs]

    def text(self) -> str:
        """All words, one space between them."""
        return " ".join(" ".join(self.words).split())
