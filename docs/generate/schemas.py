"""The reference of the reports: a JSON schema as lists of keys, one for each object in it."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Schema = Mapping[str, Any]


def page(files: Iterable[Path]) -> str:
    """The page of Markdown: each schema's title and description, and the keys of its objects.

    Args:
        files: JSON schemas.
    """
    text = [
        "# Reports",
        "",
        "Every report is one JSON file that follows a schema. Keys may be added; the meaning of a "
        "key stays.",
        "",
    ]
    for file in files:
        schema = json.loads(file.read_text(encoding="utf-8"))
        name = file.name.removesuffix(".json").removesuffix(".schema")
        definitions = schema.get("$defs", {})
        text += [f"## {schema.get('title', name)} {{ #{name} }}", ""]
        text += [_prose(schema.get("description", "")), ""]
        text += _entries(schema, name, definitions)
        for key, definition in definitions.items():
            if "properties" in definition:
                text += [f"### {key} {{ #{name}-{key} }}", ""]
                text += [_prose(definition.get("description", "")), ""]
                text += _entries(definition, name, definitions)
    return "\n".join(text)


def _entries(schema: Schema, file: str, definitions: Mapping[str, Schema]) -> list[str]:
    text = []
    for name, kind, meaning, required in _rows(schema, file, definitions):
        text += [f"`{name}`{'' if required else ' (may be absent)'}: {kind}"]
        text += [f":   {_prose(meaning)}", ""]
    return text


def _rows(
    schema: Schema, file: str, definitions: Mapping[str, Schema], prefix: str = ""
) -> Iterator[tuple[str, str, str, bool]]:
    required = schema.get("required", ())
    for name, value in schema.get("properties", {}).items():
        meaning = value.get("description", "")
        yield prefix + name, kind_of(value, file, definitions), meaning, name in required
        # An object that is written where it stands gets its rows below its own.
        yield from _rows(value, file, definitions, f"{prefix}{name}.")


def kind_of(schema: Schema, file: str, definitions: Mapping[str, Schema]) -> str:
    """What a value of the schema looks like, in Markdown.

    Args:
        schema: of the value.
        file: name of the schema that holds its definitions, for the links.
        definitions: what its $refs point to; one without keys of its own stands where it is used.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if "properties" in definitions[name]:
            return f"[{name}](#{file}-{name})"
        return kind_of(definitions[name], file, definitions)
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return " or ".join(kind_of(one, file, definitions) for one in schema[choice])
    kind = schema.get("type", "any value")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(kind_of(one, file, definitions) for one in schema['prefixItems'])}]"
    if kind == "array" and "items" in schema:
        return f"list of {kind_of(schema['items'], file, definitions)}"
    values = schema.get("additionalProperties")
    if kind == "object" and isinstance(values, Mapping):
        return f"name → {kind_of(values, file, definitions)}"
    bounds = [
        f"{sign} {schema[key]}"
        for sign, key in (("≥", "minimum"), ("≤", "maximum"), (">", "exclusiveMinimum"))
        if key in schema
    ]
    return " ".join([str(kind), *bounds])


def _prose(text: str) -> str:
    parts = " ".join(text.split()).split("`")
    # What stands between backquotes is code already.
    parts[::2] = [part.replace("_", "\\_").replace("*", "\\*") for part in parts[::2]]
    # A definition of no words would be no definition.
    return "`".join(parts) or "&nbsp;"
