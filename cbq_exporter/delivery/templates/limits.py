"""How large a template may be: so that none takes long to read and compile, and its loops pay for what they repeat."""

from __future__ import annotations

import math

import jinja2
from jinja2 import nodes

from cbq_exporter.delivery.templates.language import MOST_BITS, refuse

MOST_CHARACTERS = 256 * 1024
MOST_PARTS = 5000  # names, values, filters, operators, statements, texts
# Python takes 200 parentheses in each other, of which a part makes up to three; and 20 loops.
MOST_DEPTH = 40
MOST_LOOPS_DEPTH = 15


def parse(environment: jinja2.Environment, source: str, name: str) -> nodes.Template:
    """Raises TemplateSyntaxError, of Jinja2, for what is no template or too large a one."""
    if len(source) > MOST_CHARACTERS:
        refuse(f"is longer than {MOST_CHARACTERS:,} characters", 1)
    try:
        tree = environment.parse(source, name)
    except RecursionError:
        refuse(_TOO_DEEP, 1)
    except ValueError:  # Python reads no more digits than it likes
        refuse(_TOO_LONG, 1)
    _measure(tree)
    return tree


_TOO_DEEP = f"is nested more than {MOST_DEPTH} levels deep"
_TOO_LONG = "a number has too many digits"


def _measure(tree: nodes.Template) -> None:
    parts = 0
    left: list[tuple[nodes.Node, int, int]] = [(tree, 0, 0)]
    while left:
        node, depth, loops = left.pop()
        parts += 1
        loops += isinstance(node, nodes.For)
        if parts > MOST_PARTS:
            refuse(f"has more than {MOST_PARTS:,} parts", node.lineno)
        if depth > MOST_DEPTH:
            refuse(_TOO_DEEP, node.lineno)
        if loops > MOST_LOOPS_DEPTH:
            refuse(f"has more than {MOST_LOOPS_DEPTH} loops in each other", node.lineno)
        if isinstance(node, nodes.Const) and isinstance(node.value, int) and node.value.bit_length() > MOST_BITS:
            refuse(_TOO_LONG, node.lineno)
        if isinstance(node, nodes.Const) and isinstance(node.value, float) and not math.isfinite(node.value):
            refuse("a number is out of range", node.lineno)
        left += [(child, depth + 1, loops) for child in node.iter_child_nodes()][::-1]
