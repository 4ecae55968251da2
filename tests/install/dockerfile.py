"""The Dockerfile, read and run one instruction after the other in a folder, without a builder and without root."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Instruction:
    word: str  # in capitals
    rest: str  # on one line


@dataclass
class Stage:
    """One FROM and what follows it; what its instructions leave behind."""

    base: str
    instructions: list[Instruction] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    settings: dict[str, Any] = field(default_factory=dict)  # USER, CMD and the like, as they are written


def stages(text: str) -> list[Stage]:
    """ValueError for what stands before the first FROM and is no ARG."""
    found: list[Stage] = []
    for one in _instructions(text):
        if one.word == "FROM":
            found.append(Stage(one.rest.split()[0]))
        elif found:
            found[-1].instructions.append(one)
        elif one.word != "ARG":
            raise ValueError(f"{one.word} before the first FROM")
    return found


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    split = (re.sub(r"\s+", " ", line.strip()).partition(" ") for line in whole.splitlines())
    return [Instruction(word.upper(), rest) for word, _, rest in split]


class Workshop:
    """A folder that stands for the root of the image that a stage makes: each of ``own`` is a path of the image that
    is in the folder here, and commands are told so. All other paths are those of this machine.
    """

    def __init__(self, folder: Path, context: Path, own: tuple[str, ...], run: Callable[[str], str | None]) -> None:
        """``run`` may put another command in the place of one, or None: leave it out."""
        self._folder, self._context, self._own, self._instead = folder, context, own, run
        ignored = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
        self._sent = [line[1:] for line in ignored if line.startswith("!")]

    def here(self, text: str) -> str:
        """A command or path of the image, as it is here."""
        for path in self._own:
            text = re.sub(rf"(?<![\w/.-]){re.escape(path)}(?![\w-])", f"{self._folder}{path}", text)
        return text

    def follow(self, stage: Stage, arguments: Mapping[str, str], environment: Mapping[str, str]) -> None:
        """CalledProcessError for the first command that fails, with what it said; ValueError for an instruction that
        is not known here, and for a COPY of what .dockerignore keeps from the builder.
        """
        for one in stage.instructions:
            match one.word:
                case "ENV":
                    stage.environment |= dict(word.split("=", 1) for word in shlex.split(one.rest))
                case "ARG":
                    name, _, default = one.rest.partition("=")
                    stage.environment[name] = arguments.get(name, default)
                case "WORKDIR":
                    stage.workdir = one.rest
                    Path(self.here(one.rest)).mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(stage, one.rest.split())
                case "RUN":
                    self._run(stage, one.rest, environment)
                case "HEALTHCHECK" | "USER" | "VOLUME" | "EXPOSE" | "STOPSIGNAL" | "ENTRYPOINT" | "CMD" | "LABEL":
                    stage.settings[one.word] = one.rest
                case _:
                    raise ValueError(f"{one.word}: not known to the tests")

    def _copy(self, stage: Stage, words: list[str]) -> None:
        if words[0].startswith("--from="):
            return  # from another folder of this workshop, as it is
        *names, into = words
        target = Path(self.here(stage.workdir)) / into
        for name in names:
            parents = [name, *(str(parent) for parent in Path(name).parents)]
            if not any(fnmatch.fnmatch(one, sent) for one in parents for sent in self._sent):
                raise ValueError(f"COPY {name}: .dockerignore does not let it in")
            source = self._context / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)

    def _run(self, stage: Stage, command: str, environment: Mapping[str, str]) -> None:
        for step in command.split(" && "):
            here = self._instead(self.here(step))
            if here is not None:
                known = {**environment, **stage.environment}
                folder = self.here(stage.workdir)
                subprocess.run(
                    ["nice", "-n", "10", "sh", "-c", here],
                    cwd=folder,
                    env=known,
                    check=True,
                    capture_output=True,
                    text=True,
                    timeout=600,
                )


def words(written: str) -> list[str]:
    """Of an instruction in JSON, whatever stands before it."""
    read: list[str] = json.loads(written[written.index("[") :])
    return read
