"""As much of PromQL as the example alerts use, over one scrape; the grammar is promql_parser's.

It stands in for promtool, which is no Python package: https://prometheus.io/docs/prometheus/latest/querying/operators/.
"""

import operator
import re
from collections.abc import Iterable
from typing import Any

from promql_parser import (
    BinaryExpr,
    Call,
    LabelModifierType,
    Matcher,
    MatchOp,
    NumberLiteral,
    ParenExpr,
    VectorSelector,
    parse,
)

Sample = tuple[dict[str, str], float]
"""Labels, the name among them as __name__, and the value."""
_NAME = "__name__"
_COMPARE = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq}


def firing(expression: str, samples: Iterable[Sample], now: float) -> list[dict[str, str]]:
    """Give the labels for which an alert would fire."""
    return [labels for labels, _ in _value(parse(expression), list(samples), now)]


def _value(node: Any, samples: list[Sample], now: float) -> Any:
    match node:
        case NumberLiteral():
            return node.val
        case ParenExpr():
            return _value(node.expr, samples, now)
        case Call():
            assert node.func.name == "time"
            return now
        case VectorSelector():
            wanted = node.matchers.matchers
            return [
                (labels, value)
                for labels, value in samples
                if labels[_NAME] == node.name and all(_matches(labels.get(m.name, ""), m) for m in wanted)
            ]
        case BinaryExpr():
            sides = _value(node.lhs, samples, now), _value(node.rhs, samples, now)
            return _binary(f"{node.op}", *sides, node.modifier)
    raise AssertionError(f"not understood here: {node}")


def _matches(value: str, matcher: Matcher) -> bool:
    like = re.fullmatch(matcher.value, value) is not None
    if matcher.op == MatchOp.Re:
        return like
    if matcher.op == MatchOp.NotRe:
        return not like
    assert matcher.op == MatchOp.Equal
    return value == matcher.value


def _binary(op: str, left: Any, right: Any, modifier: Any) -> Any:
    if op in {"and", "unless"}:
        there = {_key(labels, modifier) for labels, _ in right}
        return [(labels, value) for labels, value in left if (_key(labels, modifier) in there) == (op == "and")]
    if op == "-":
        if not isinstance(right, list):
            return left - right
        return [({k: v for k, v in labels.items() if k != _NAME}, left - value) for labels, value in right]
    assert not isinstance(right, list), "only comparisons with numbers are understood here"
    return [(labels, value) for labels, value in left if _COMPARE[op](value, right)]


def _key(labels: dict[str, str], modifier: Any) -> frozenset[tuple[str, str]]:
    without = {_NAME}
    if modifier and modifier.matching:
        assert modifier.matching.type == LabelModifierType.Exclude
        without |= set(modifier.matching.labels)
    return frozenset((name, value) for name, value in labels.items() if name not in without)
