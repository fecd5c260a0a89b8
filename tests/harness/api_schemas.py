"""openapi.yaml's schemas, by which a test checks what the API answers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fastjsonschema
import yaml

FILE = Path(__file__).parents[2] / "balloon_daemon/api/openapi.yaml"


@cache
def description() -> dict[str, Any]:
    """The whole description."""
    loaded: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return loaded


def strict(schema: Any) -> Any:
    """The schema, with no property allowed that it does not name; an event has its own ones."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if "properties" in made and "time" not in made["properties"] and made.get("type") == "object":
        made["additionalProperties"] = False
    return made


@cache
def check(name: str) -> Callable[[Any], Any]:
    """A function that raises ``fastjsonschema.JsonSchemaException`` for other values."""
    components = strict(description()["components"])
    root = {"$ref": f"#/components/schemas/{name}", "components": components}
    checker: Callable[[Any], Any] = fastjsonschema.compile(root)
    return checker


def answered(path: str, method: str, status: int, kind: str) -> str:
    """The name of the schema that a path has for an answer of this status and content type."""
    answers = description()["paths"][path][method.lower()]["responses"]
    answer = answers.get(str(status), answers["default"])
    if "$ref" in answer:
        answer = description()["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    ref: str = answer["content"][kind]["schema"]["$ref"]
    return ref.rpartition("/")[2]
