"""What a comparison lets pass, values prove: all that fits the writer's schema fits the reader's."""

from __future__ import annotations

import copy
import json
from typing import Any

import jsonschema
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from microkit.compatibility.reading import differences
from microkit.compatibility.schema import Node

NAMES = ["a", "b", "kind"]
PATTERNS = {"^[a-m]": st.sampled_from(["a", "abc", "m"]), "^[0-9]+$": st.sampled_from(["0", "12", "345"])}
FORMATS = {
    "uuid": st.uuids().map(str),
    "date": st.dates().map(str),
    "ipv4": st.ip_addresses(v=4).map(str),
}
Schema = dict[str, Any]


def bounded(lowest: str, highest: str, most: int) -> st.SearchStrategy[Schema]:
    bounds = st.fixed_dictionaries({}, optional={lowest: st.integers(0, most), highest: st.integers(0, most)})
    return bounds.filter(lambda found: found.get(lowest, 0) <= found.get(highest, most))


numbers = st.builds(
    lambda kind, low, high, step: {"type": kind, **low, **high, **step},
    st.sampled_from(["integer", "number"]),
    st.fixed_dictionaries({}, optional={"minimum": st.integers(-3, 3)})
    | st.fixed_dictionaries({}, optional={"exclusiveMinimum": st.integers(-3, 3)}),
    st.fixed_dictionaries({}, optional={"maximum": st.integers(5, 9)})
    | st.fixed_dictionaries({}, optional={"exclusiveMaximum": st.integers(5, 9)}),
    st.fixed_dictionaries({}, optional={"multipleOf": st.sampled_from([1, 2, 4])}),
)
texts = (
    bounded("minLength", "maxLength", 4).map(lambda found: {"type": "string", **found})
    | st.sampled_from([{"type": "string", "pattern": pattern} for pattern in PATTERNS])
    | st.sampled_from([{"type": "string", "format": name} for name in FORMATS])
)
few = st.lists(st.sampled_from(["a", "b", "12", 1, 2.0, None, True]), min_size=1, max_size=3).map(
    lambda v: {"enum": v}
) | st.sampled_from([{"const": "a"}, {"const": 4}, {"type": "boolean"}, {"type": "null"}])
anything: st.SearchStrategy[Schema] = st.just({})


def alone(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    def with_fields(fields: Schema, required: list[str], more: Schema) -> Schema:
        found = {"type": "object", "properties": fields, **more}
        needed = sorted(set(required) & fields.keys())
        return {**found, "required": needed} if needed else found

    objects = st.builds(
        with_fields,
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
        st.lists(st.sampled_from(NAMES), max_size=3),
        st.fixed_dictionaries({}, optional={"additionalProperties": inner | st.booleans()}),
    )
    mappings = st.builds(
        lambda values, sizes: {"type": "object", "additionalProperties": values, **sizes},
        inner,
        bounded("minProperties", "maxProperties", 2),
    ) | st.builds(
        lambda pattern, values: {
            "type": "object",
            "patternProperties": {pattern: values},
            "additionalProperties": False,
        },
        st.sampled_from(list(PATTERNS)),
        inner,
    )
    arrays = st.builds(
        lambda items, sizes, unique: {"type": "array", "items": items, **sizes, **unique},
        inner,
        bounded("minItems", "maxItems", 3),
        st.fixed_dictionaries({}, optional={"uniqueItems": st.booleans()}),
    )
    tuples = st.builds(
        lambda first, rest: {"type": "array", "prefixItems": first, "items": rest},
        st.lists(inner, min_size=1, max_size=2),
        inner | st.just(False),
    )
    tagged = st.lists(st.tuples(st.sampled_from(["x", "y", "z"]), inner), min_size=1, max_size=3).map(
        lambda kinds: {
            "oneOf": [
                {"type": "object", "properties": {"kind": {"const": tag}, "a": field}, "required": ["kind"]}
                for tag, field in dict(kinds).items()
            ]
        }
    )
    unions = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    return objects | mappings | arrays | tuples | tagged | unions


def with_all_of(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return alone(inner) | st.tuples(inner, inner).map(lambda parts: {"allOf": list(parts)})


simple_schemas = st.recursive(numbers | texts | few | anything, alone, max_leaves=6)
schemas = st.recursive(numbers | texts | few | anything, with_all_of, max_leaves=6)


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)


def closed(schema: Any) -> Any:
    """The schema as a writer means it: no fields beside those that it declares."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict) or "const" in schema or "enum" in schema:
        return schema
    found = {
        name: {key: closed(value) for key, value in part.items()}
        if name.endswith("roperties") and isinstance(part, dict) and name != "additionalProperties"
        else closed(part)
        for name, part in schema.items()
    }
    if found.get("properties") and "additionalProperties" not in found:
        found["additionalProperties"] = False
    return found


anyhow = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-9, 9)
    | st.floats(-4, 4, width=16)
    | st.sampled_from(["", "a", "12", "zz", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*NAMES, "0", "q"]), inner, max_size=3),
    max_leaves=4,
)


def values(schema: Any) -> st.SearchStrategy[Any]:  # noqa: C901  one branch a kind
    """Values that mostly fit a writer's schema; what does not is filtered by who uses them."""
    if schema in (True, {}):
        return anyhow
    if schema is False:
        return st.nothing()
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema["enum"] if "enum" in schema else [schema["const"]])
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return st.one_of([values(part) for part in schema[union]])
    kind = schema["type"]
    if kind == "object":
        needed = schema.get("required", ())
        fields = {name: values(part) for name, part in schema.get("properties", {}).items()}
        named = st.fixed_dictionaries(
            {name: fields[name] for name in needed}, optional={k: v for k, v in fields.items() if k not in needed}
        )
        more = schema.get("additionalProperties", not fields)
        others = (
            st.dictionaries(st.sampled_from([*NAMES, "q"]), values(more), max_size=2)
            if more is not False
            else st.just({})
        )
        for pattern, part in schema.get("patternProperties", {}).items():
            others = st.dictionaries(PATTERNS[pattern], values(part), max_size=2)
        return st.tuples(others, named).map(lambda both: {**both[0], **both[1]})
    if kind == "array" and "prefixItems" in schema:
        first = st.tuples(*map(values, schema["prefixItems"])).map(list)
        if schema["items"] is False:
            return first
        return st.tuples(first, st.lists(values(schema["items"]), max_size=1)).map(lambda both: both[0] + both[1])
    if kind == "array":
        return st.lists(values(schema["items"]), max_size=3) if schema["items"] is not False else st.just([])
    if kind == "string":
        if "pattern" in schema:
            return PATTERNS[schema["pattern"]]
        return FORMATS[schema["format"]] if "format" in schema else st.text("a1é", max_size=4)
    simple = {"integer": st.integers(-4, 12), "number": st.integers(-4, 12) | st.floats(-4, 12, width=16)}
    return {**simple, "null": st.none(), "boolean": st.booleans()}[kind]


def find(writer: Any, reader: Any) -> list[str]:
    document = {"writer": copy.deepcopy(writer), "reader": copy.deepcopy(reader)}
    return [one.text for one in differences(*(Node(document, f"/{name}", document[name]) for name in document))]


def changed(schema: Any, data: st.DataObject) -> Any:
    """The schema with one or two parts of it replaced, left out or given away."""
    found = copy.deepcopy(schema)
    for _ in range(data.draw(st.integers(1, 2))):
        spots: list[tuple[Any, Any]] = []

        def collect(part: Any, spots: list[tuple[Any, Any]] = spots) -> None:
            keys = part.keys() if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ()
            for key in keys:
                spots.append((part, key))
                collect(part[key])

        collect(found)
        if not spots:
            return copy.deepcopy(data.draw(schemas))
        holder, key = data.draw(st.sampled_from(spots))
        held = holder[key]
        if isinstance(held, bool):
            holder[key] = not held
        elif isinstance(held, int):
            holder[key] = max(0, held + data.draw(st.integers(-2, 2)))
        elif isinstance(held, dict) and "type" in held:
            holder[key] = copy.deepcopy(data.draw(schemas))  # strategies share what they draw
        elif key in ("required", "minimum", "maximum", "maxLength", "minLength", "format", "pattern"):
            del holder[key]
        elif isinstance(held, list) and held and not isinstance(held[0], dict) and data.draw(st.booleans()):
            held.pop()
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_a_compatible_writer_writes_the_reader_takes(data: st.DataObject) -> None:
    writer = data.draw(schemas)
    reader: Any = changed(writer, data) if data.draw(st.booleans()) else data.draw(schemas)
    try:
        jsonschema.Draft202012Validator.check_schema(reader)
    except jsonschema.SchemaError:
        assume(False)
    assume(not find(writer, reader))
    written, taken = validator(closed(writer)), validator(reader)
    for _ in range(4):
        value = data.draw(values(writer))
        if written.is_valid(value):
            assert taken.is_valid(value), json.dumps({"writer": writer, "reader": reader, "value": value})


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(simple_schemas)
def test_each_schema_reads_what_it_writes_itself(schema: Schema) -> None:
    assert find(schema, schema) == []
