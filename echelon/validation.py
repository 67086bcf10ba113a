"""What pydantic finds wrong with a value, in words that name no type of a program. The one place for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

INPUT = "Input should "
MISSING = "must be given; it has no default"
EXPECTED = {
    "tuple_type": "be a list",
    "list_type": "be a list",
    "set_type": "be a list",
    "frozen_set_type": "be a list",
    "dict_type": "be a map",
    "mapping_type": "be a map",
    "model_type": "be a map of settings",
    "model_attributes_type": "be a map of settings",
    "string_type": "be a text",
    "path_type": "be a path, written as a text",
    "bool_type": "be true or false",
    "bool_parsing": "be true or false",
    "int_parsing": "be a valid integer",
    "int_parsing_size": "be an integer of fewer digits",
    "int_from_float": "be a valid integer, without a fraction",
    "float_type": "be a valid number",
    "float_parsing": "be a valid number",
    "none_required": "be null",
    "too_short": "have at least {min_length} items, not {actual_length}",
    "too_long": "have at most {max_length} items, not {actual_length}",
    "string_too_short": "have at least {min_length} characters",
    "string_too_long": "have at most {max_length} characters",
    "string_pattern_mismatch": "match the pattern {pattern}",
    "extra_forbidden": "not be there: nothing of this name is known",
    "invalid_key": "have a text for a name",
}
"""What a value should do, by pydantic's kind of a problem. Pydantic's own sentence serves where it names no type."""
PATTERNS = {
    r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$": "be a name: at most 32 small letters, digits, and . _ - between them",
    r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$": "be a name: at most 64 small letters, digits, and . _ - between them",
    r"^[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?$": "be a name: at most 64 small letters, digits, and . - between them",
    r"^[a-z][a-z0-9_]{0,63}$": "be a name: a small letter, then at most 63 small letters, digits and _",
    r"^[a-z][a-z0-9_.-]{0,62}$": "be a name: a small letter, then at most 62 small letters, digits, and . _ -",
    r"^[0-9a-f]{64}$": "be 64 hexadecimal digits, in small letters",
    r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$": "be MODULE:CLASS, a class of your own",
    r"^(exact|bf16|int[48]|topk:0?\.[0-9]+|lowrank:[0-9]{1,4}|sketch:0?\.[0-9]+|error:0?\.[0-9]+)$": "be exact, bf16, "
    "int4, int8, topk:SHARE, lowrank:RANK, sketch:SHARE or error:SHARE, a share such as 0.1",
    r"^(iid|by-domain|dirichlet\([0-9]*\.?[0-9]+\))$": "be iid, by-domain or dirichlet(NUMBER)",
    r"^[a-z]+(\.([a-z]+|\{[a-z]+\}))*$": "be a topic's name, such as manifest or delta.{{boundary}}",
}
"""Patterns of settings, in words."""


def sentence(details: ErrorDetails) -> str:
    """What a value should be.

    Args:
        details: one problem, as pydantic describes it.
    """
    if details["type"] == "missing":
        return MISSING
    context: Mapping[str, object] = details.get("ctx", {})
    expected = EXPECTED.get(details["type"])
    if expected is None:
        return details["msg"].removeprefix("Value error, ")
    if details["type"] == "string_pattern_mismatch":
        expected = PATTERNS.get(str(context.get("pattern")), expected)
    found = details.get("input", "")  # some readers leave it out
    if details["type"] == "string_type" and (found is None or isinstance(found, bool | int | float)):
        expected += f"; what stands there reads as {json.dumps(found)}: put it in quotes"
    text = INPUT + expected.format(**context)
    return text.replace(" 1 items", " 1 item").replace(" 1 characters", " 1 character")
