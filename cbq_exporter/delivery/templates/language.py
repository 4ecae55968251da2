"""The part of Jinja2 that request templates are written in, and how it is carried out."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing, pass_context
from jinja2.visitor import NodeTransformer

from cbq_exporter.delivery.fields import JsonArray, JsonObject, to_json
from cbq_exporter.delivery.templates.budget import Budget, budget_of, one_by_one
from cbq_exporter.delivery.templates.filters import FILTERS, FUNCTIONS, TESTS, Written, name_of, text_of
from cbq_exporter.logs import printable

_STATEMENTS = (nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Assign)
_EXPRESSIONS = (
    *(nodes.Name, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.CondExpr),
    *(nodes.Filter, nodes.Test, nodes.Call, nodes.Getitem, nodes.Getattr, nodes.Slice, nodes.Concat, nodes.Compare),
    *(nodes.Operand, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod),
    *(nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
)
_ALLOWED = frozenset((*_STATEMENTS, *_EXPRESSIONS))
_OBJECTS = (dict, JsonObject)
_WITH_PLACES = (*_OBJECTS, JsonArray, list, tuple, str)
_KEYS = (str, int, float)
_WITH_LENGTH = (*_WITH_PLACES, range)
# Of a product, and of a number that a template says: squared again and again, one takes longer than its digits can be
# counted.
MOST_BITS = 8192
_PARTS_OF_A_STEP = 20  # of a loop: how many names, filters, statements ... one step does
_IN_LOOPS = frozenset({"depth", "depth0", "first", "index", "index0", "last", "length", "nextitem", "previtem"})


class Guard(NodeTransformer):
    """Refuses what is not part of the language, and has the rest paid for."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        if type(node) not in _ALLOWED or (isinstance(node, nodes.Name) and node.name == "self"):
            refuse(f"{type(node).__name__.lower()} is not available here", node.lineno)
        if isinstance(node, nodes.For):
            if node.recursive:
                refuse("recursive loops are not available here", node.lineno)
            self.generic_visit(node)
            cost = nodes.Const(1 + sum(1 for _ in node.find_all(nodes.Node)) // _PARTS_OF_A_STEP, lineno=node.lineno)
            node.iter = _called("counted", node.iter, cost)
            return node
        self.generic_visit(node)
        if isinstance(node, nodes.Pair):
            node.key = node.key if isinstance(node.key, nodes.Const) else _called("key", node.key)
        if isinstance(node, nodes.Concat):
            return _called("joined", *node.nodes)
        if isinstance(node, nodes.Compare):
            node.expr = _paid_operand(node.expr)
            for operand in node.ops:
                operand.expr = _paid_operand(operand.expr)
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _called("made", node.node)
        elif isinstance(node, nodes.CondExpr) and node.expr2 is None:
            node.expr2 = nodes.Const("", lineno=node.lineno)
        return node


def _called(name: str, *given: Any) -> nodes.Expr:
    line = given[0].lineno
    return nodes.Call(nodes.EnvironmentAttribute(name, lineno=line), list(given), [], None, None, lineno=line)


def _paid_operand(node: nodes.Expr) -> nodes.Expr:
    """Comparing with a constant takes no longer than that is long."""
    return node if isinstance(node, nodes.Const) else _called("made", node)


def _counted(budget: Budget, values: Any, cost: int) -> Iterable[Any]:
    """What a loop goes over, each step paid for with ``cost``."""
    if isinstance(values, _WITH_LENGTH):
        budget.step(cost * len(values))
        return values
    return one_by_one(budget, values, cost)


def _made(budget: Budget, value: Any) -> Any:
    budget.spend(value)
    return value


def _key(budget: Budget, value: Any) -> Any:
    """Of a mapping that a template makes: to look up a tuple of tuples takes as long as they are large."""
    if not isinstance(value, _KEYS):
        raise TypeError(f"{name_of(value)} cannot be a key")
    return _made(budget, value)


def _bits(number: float) -> int:
    return number.bit_length() if isinstance(number, int) else 0


def _joined(budget: Budget, *values: Any) -> str:
    text = "".join([text_of(value) for value in values])
    budget.take(len(text))
    return text


class Missing(jinja2.StrictUndefined):
    @property
    def _undefined_message(self) -> str:
        if self._undefined_hint:
            return self._undefined_hint
        name = self._undefined_name
        said = repr(printable(str(name), 60)) if isinstance(name, str | int) else name_of(name)
        if self._undefined_obj is missing:
            return f"{said} has no value"
        return f"there is no {said} in {name_of(self._undefined_obj)}"


class Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%"})
    counted = staticmethod(_counted)
    joined = staticmethod(_joined)
    key = staticmethod(_key)
    made = staticmethod(_made)

    def __init__(self, *, escapes: bool) -> None:
        super().__init__(
            undefined=Missing,
            finalize=_finalize_for_json if escapes else _finalize,
            trim_blocks=True,
            lstrip_blocks=True,
            cache_size=0,
            optimized=False,
        )
        self.filters = dict(FILTERS)
        self.tests = dict(TESTS)
        self.globals = dict(FUNCTIONS)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """A key; no attribute of any Python object, but what loops know of themselves."""
        if isinstance(obj, _OBJECTS):
            try:
                return obj[attribute]
            except KeyError:
                pass
        elif type(obj) is LoopContext and attribute in _IN_LOOPS:
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, _WITH_PLACES) and not isinstance(argument, tuple):
            try:
                return obj[argument]
            except (LookupError, TypeError):
                pass
        return self.undefined(obj=obj, name=argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        budget = budget_of(__context)
        if __obj is _counted or __obj is _made or __obj is _joined or __obj is _key:
            return __obj(budget, *args)
        if isinstance(__obj, Undefined):
            __obj()  # says which
        if type(__obj) is not FunctionType or __obj not in __self.globals.values():
            raise SecurityError(f"{name_of(__obj)} cannot be called: there are filters instead of methods")
        budget.step()
        kwargs.pop("_loop_vars", None)
        for value in (*args, *kwargs.values()):
            budget.spend(value)
        return __obj(*args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return _made(budget_of(context), left + right)
        for value in (left, right):
            if isinstance(value, Undefined):
                str(value)  # says which
            if not isinstance(value, int | float):
                raise TypeError(f"{operator} is for numbers, not for {name_of(value)}; texts are joined by ~")
        if operator == "*" and _bits(left) + _bits(right) > MOST_BITS:
            raise ValueError("a product is too long a number")
        return _made(budget_of(context), super().call_binop(context, operator, left, right))


@pass_context
def _finalize(context: Context, value: Any) -> str:
    """What ``{{ value }}`` writes."""
    text = text_of(value)
    budget_of(context).take(len(text))
    return text


@pass_context
def _finalize_for_json(context: Context, value: Any) -> str:
    text = text_of(value)
    budget_of(context).take(len(text))
    return to_json(text)[1:-1] if isinstance(value, str) and type(value) is not Written else text


def refuse(why: str, line: int) -> NoReturn:
    raise jinja2.TemplateSyntaxError(why, line)
