"""Pages of Markdown as tests read them: headings, links, code blocks, and transcripts of a console."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.generated import ROOT

_FENCE = re.compile(r"^```(\S*) ?(.*)$")
_HEADING = re.compile(r"^(#{1,6}) (.+?)\s*$")
_LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
_SPAN = re.compile(r"(`+)(?:.*?)\1")


@dataclass(frozen=True)
class Block:
    """A fenced block of code. ``line`` is that of its opening fence, ``info`` what follows the language."""

    page: Path
    line: int
    language: str
    info: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Step:
    """One command of a transcript, and the lines that it is said to write."""

    place: str
    command: str
    output: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """``prose`` is the page without its code blocks, with the number of each line."""

    path: Path
    blocks: tuple[Block, ...]
    prose: tuple[tuple[int, str], ...]

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def headings(self) -> list[tuple[int, str]]:
        """Their levels and texts."""
        found = (_HEADING.match(line) for _, line in self.prose)
        return [(len(one[1]), one[2]) for one in found if one]

    def anchors(self) -> set[str]:
        """As GitHub makes them."""
        made: set[str] = set()
        for _, text in self.headings():
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = 0
            while (name := f"{slug}-{count}" if count else slug) in made:
                count += 1
            made.add(name)
        return made

    def links(self) -> Iterator[tuple[int, str]]:
        """The lines and targets of all links; what looks like one inside of code is none."""
        for number, line in self.prose:
            for target in _LINK.findall(_SPAN.sub("`code`", line)):
                yield number, target

    def of(self, language: str) -> list[Block]:
        return [block for block in self.blocks if block.language == language]


def read(path: Path) -> Page:
    blocks: list[Block] = []
    prose: list[tuple[int, str]] = []
    lines = enumerate(path.read_text("utf-8").splitlines(), 1)
    for number, line in lines:
        opened = _FENCE.match(line)
        if opened is None:
            prose.append((number, line))
            continue
        inside: list[str] = []
        for _, text in lines:
            if text == "```":
                break
            inside.append(text)
        else:
            raise ValueError(f"{path}:{number}: the block does not end")
        blocks.append(Block(path, number, opened[1], opened[2], "".join(f"{one}\n" for one in inside)))
    return Page(path, tuple(blocks), tuple(prose))


def steps(block: Block) -> list[Step]:
    """The commands of a console block: ``$ `` begins one, ``> `` goes on with it, the rest is its output."""
    found: list[tuple[int, list[str], list[str]]] = []
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        if line.startswith("$ "):
            found.append((number, [line[2:]], []))
        elif line.startswith("> ") and found and not found[-1][2]:
            found[-1][1].append(line[2:])
        elif found:
            found[-1][2].append(line)
        else:
            raise ValueError(f"{block.place}: output without a command")
    page = block.page.relative_to(ROOT)
    return [
        Step(f"{page}:{number}", "\n".join(command), tuple(line for line in output if line.strip()))
        for number, command, output in found
    ]
