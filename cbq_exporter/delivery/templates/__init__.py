"""Request templates: Jinja2, cut down until neither a template nor an item can do harm.

A template comes from the operator, what it is filled with from producers. What holds, whatever a producer sends:

- No Python object but plain values can be reached: no attribute, no method, only keys and places, the filters, tests
  and functions below.
- Time and memory are bounded. There are no macros, no recursion, no assignments that outlive their loop: a template
  does so much work for each step of its loops, and pays more for a step that does more. Steps, the characters that it
  reads and makes, and its output are counted, and end it. How large the template itself is has bounds too.
- In a JSON body, a text that is written bare is escaped for the inside of a JSON string: ``"{{ item.task_id }}"``
  stays one string, whatever is in it. ``tojson`` writes whole values, ``safe`` writes a text as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import TracebackType
from typing import Any

import jinja2
from jinja2 import meta, nodes

from cbq_exporter.delivery.render_errors import OutputTooLarge, RenderError
from cbq_exporter.delivery.templates import budget, limits
from cbq_exporter.delivery.templates.filters import Digest as Digest
from cbq_exporter.delivery.templates.language import Environment, Guard, refuse
from cbq_exporter.logs import printable

_LONGEST_DETAIL = 200  # characters

_TEXT, _JSON = Environment(escapes=False), Environment(escapes=True)


class TemplateError(ValueError):
    """The template itself cannot be used: what and where, on one line."""


class Template:
    """One that was compiled. ``names`` are the values that it uses, of those that it may."""

    def __init__(
        self, source: str, name: str, *, known: Collection[str], secrets: Collection[str], escapes: bool
    ) -> None:
        """``known`` names what ``render`` can be given, ``secrets`` what is in the value of that name.

        ``escapes``: texts are for the inside of JSON strings. Raises TemplateError.
        """
        self._name = name
        environment = _JSON if escapes else _TEXT
        try:
            tree = Guard().visit(limits.parse(environment, source, name))
            self.names = frozenset(meta.find_undeclared_variables(tree)) - environment.globals.keys()
            _refuse_unknown(tree, self.names, known, secrets)
            code = environment.compile(tree, name, name)
            self._template = jinja2.Template.from_code(environment, code, environment.globals)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"{name}:{error.lineno}: {printable(error.message or '', _LONGEST_DETAIL)}") from None
        except Exception as error:  # what is always the same is worked out now
            raise TemplateError(f"{name}: {_why(error)}") from None

    def render(self, values: Mapping[str, Any], max_chars: int) -> str:
        """Raises RenderError. Nothing is kept of ``values``."""
        context = self._template.new_context({**values, budget.KEY: budget.Budget(max_chars)})
        pieces = []
        left = max_chars
        try:
            for piece in self._template.root_render_func(context):
                left -= len(piece)
                if left < 0:
                    raise OutputTooLarge(f"more than {max_chars:,} characters come out of {self._name}")
                pieces.append(piece)
        except RenderError:
            raise
        except Exception as error:
            raise RenderError(f"{self._name}:{self._line(error.__traceback__)}: {_why(error)}") from None
        return "".join(pieces)

    def _line(self, traceback: TracebackType | None) -> int:
        line = 1
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename == self._name:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


def _refuse_unknown(
    tree: nodes.Template, used: Iterable[str], known: Collection[str], secrets: Collection[str]
) -> None:
    """A name that is mistyped is told at the start, and not by each callback."""
    for unknown in sorted(set(used) - set(known)):
        line = next(node.lineno for node in tree.find_all(nodes.Name) if node.name == unknown)
        refuse(f"there is no {unknown!r} here; there is {', '.join(sorted(known))}", line)
    for attribute in tree.find_all(nodes.Getattr):
        if _is_secrets(attribute.node) and attribute.attr not in secrets:
            refuse(f"there is no secret {attribute.attr!r}; {_there_are(secrets)}", attribute.lineno)
    for place in tree.find_all(nodes.Getitem):
        if _is_secrets(place.node) and not (isinstance(place.arg, nodes.Const) and place.arg.value in secrets):
            refuse(f"secrets has to be followed by the name of one; {_there_are(secrets)}", place.lineno)


def _is_secrets(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "secrets"


def _there_are(secrets: Collection[str]) -> str:
    return f"there is {', '.join(sorted(secrets))}" if secrets else "there is none"


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return printable(str(error) or type(error).__name__, _LONGEST_DETAIL)
