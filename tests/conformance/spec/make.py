"""Make the JSON files beside this one from a checkout of the Matrix specification.

``uv run --no-project --with pyyaml tests/conformance/spec/make.py CHECKOUT/data`` (in the specification's own
repository the folder is ``data``; it holds ``api`` and ``event-schemas``).

Of each endpoint they keep what a test can check: its parameters, its request body and the bodies of its answers. Words
and examples are left out, references are put in place.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import yaml  # not among our dependencies: the tests read what this writes

HERE = Path(__file__).parent
APIS = ("client-server", "server-server")
METHODS = ("get", "put", "post", "delete")
KEPT = frozenset(
    [
        "type",
        "properties",
        "required",
        "items",
        "additionalProperties",
        "patternProperties",
        "allOf",
        "anyOf",
        "oneOf",
        "enum",
        "const",
        "pattern",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minLength",
        "maxLength",
        "default",
    ]
)


@cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def resolved(node: Any, file: Path, depth: int = 0) -> Any:
    """A schema without words, and with what it refers to in place."""
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target, _, pointer = node["$ref"].partition("#")
        path = (file.parent / target).resolve() if target else file
        if not path.exists():
            return {}  # the identity service's, where a copy of the specification leaves that out
        found = load(path)
        for step in filter(None, pointer.split("/")):
            found = found[step]
        assert depth < 40, f"{file}: {node['$ref']} refers to itself"
        inner = resolved(found, path, depth + 1)
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return {**inner, **resolved(beside, file, depth)} if beside else inner
    kept: dict[str, Any] = {}
    for key, value in node.items():
        if key not in KEPT:
            continue
        if key in ("properties", "patternProperties"):
            kept[key] = {name: resolved(schema, file, depth + 1) for name, schema in value.items()}
        elif key in ("allOf", "anyOf", "oneOf"):
            kept[key] = [resolved(schema, file, depth + 1) for schema in value]
        elif key in ("items", "additionalProperties"):
            kept[key] = resolved(value, file, depth + 1)
        else:
            kept[key] = value
    return kept


def body_of(node: Any, file: Path) -> Any:
    """The JSON schema of a request or an answer; None where there is none."""
    if "$ref" in node:
        target = node["$ref"]
        if target.startswith("#"):
            return None  # a redirection, the only thing that is referred to so
        path = (file.parent / target).resolve()
        return body_of(load(path), path)
    content = node.get("content", {}).get("application/json")
    return None if content is None or "schema" not in content else resolved(content["schema"], file)


def endpoint(operation: Any, file: Path) -> dict[str, Any]:
    parameters = [
        {key: resolved(value, file) if key == "schema" else value for key, value in parameter.items() if key in wanted}
        for parameter in operation.get("parameters", ())
        for wanted in [("in", "name", "required", "schema")]
    ]
    request = body_of(operation.get("requestBody", {}), file)
    answers = {str(status): body_of(answer, file) for status, answer in operation["responses"].items()}
    return {
        "operation": operation["operationId"].strip(),
        "parameters": parameters,
        "request": request,
        "answers": answers,
    }


def endpoints(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for file in sorted(folder.glob("*.yaml")):
        api = load(file.resolve())
        base = api["servers"][0].get("variables", {}).get("basePath", {}).get("default", "")
        for path, operations in api["paths"].items():
            for method in METHODS:
                if method in operations:
                    found.setdefault(f"{method.upper()} {base}{path}", endpoint(operations[method], file.resolve()))
    return found


def main(data: Path) -> None:
    for api in APIS:
        found = sorted(endpoints(data / "api" / api).items())
        lines = (json.dumps(name) + ":" + json.dumps(of, separators=(",", ":"), sort_keys=True) for name, of in found)
        (HERE / f"{api}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
