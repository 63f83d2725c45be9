"""CustomResourceDefinitions from the structs of `report` and `budget`: structural schemas, valid from Kubernetes 1.20.

Pure: the only input is the structs and their source. The text below a field is its description, else the docstring of
its struct. A default in a spec is filled in by the API server; in a status a default is only assumed by readers.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import msgspec
from msgspec import NODEFAULT
from msgspec import inspect as types

from gpuhealth.api.names import API_VERSION, GROUP
from gpuhealth.api.resource import Column, Definition

Schema = dict[str, Any]


def name_of(definition: Definition) -> str:
    """The name of a kind's CustomResourceDefinition."""
    return f"{definition.plural}.{GROUP}"


def manifest(definition: Definition) -> Schema:
    """The CustomResourceDefinition that is applied to a cluster."""
    version = {
        "name": API_VERSION.removeprefix(f"{GROUP}/"),
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [_column(column) for column in definition.columns],
        "schema": {"openAPIV3Schema": schema(definition.struct)},
    }
    names = {
        "kind": definition.kind,
        "listKind": f"{definition.kind}List",
        "plural": definition.plural,
        "singular": definition.kind.lower(),
        "shortNames": [definition.short_name],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name_of(definition)},
        "spec": {"group": GROUP, "scope": "Cluster", "names": names, "versions": [version]},
    }


def schema(struct: type[msgspec.Struct]) -> Schema:
    """The openAPIV3Schema of a struct. Raises TypeError for a type that a structural schema cannot have."""
    return _schema(types.type_info(struct), defaults=False)


def descriptions(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The text below each field, by the field's name in Python."""
    source = textwrap.dedent(inspect.getsource(struct))
    (definition,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    found = {}
    for field, after in zip(definition.body, definition.body[1:], strict=False):
        match field, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _one_line(text)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _column(column: Column) -> Schema:
    found: Schema = {"name": column.name, "type": column.type}
    if column.wide:
        found["priority"] = 1
    if column.description:
        found["description"] = column.description
    return found | {"jsonPath": column.path}


def _schema(kind: types.Type, *, defaults: bool) -> Schema:
    match kind:
        case types.Metadata(type=inner, extra_json_schema=extra):
            extra = extra or {}
            return extra if "x-kubernetes-int-or-string" in extra else _schema(inner, defaults=defaults) | extra
        case types.StructType():
            return _object(kind, defaults=defaults)
        case types.UnionType(types=parts):
            (part,) = [part for part in parts if not isinstance(part, types.NoneType)]
            return _schema(part, defaults=defaults)
        case types.VarTupleType(item_type=item):
            return {"type": "array", "items": _schema(item, defaults=defaults)}
        case types.DictType(value_type=value):
            return {"type": "object", "additionalProperties": _schema(value, defaults=defaults)}
        case types.DateTimeType():
            return {"type": "string", "format": "date-time"}
        case types.StrType():
            return {"type": "string"}
        case types.BoolType():
            return {"type": "boolean"}
        case types.IntType():
            return {"type": "integer"}
        case types.FloatType():
            return {"type": "number"}
    raise TypeError(f"no structural schema for {kind}")


def _object(struct: types.StructType, *, defaults: bool) -> Schema:
    texts = descriptions(struct.cls)
    properties = {}
    for field in struct.fields:
        part = _schema(field.type, defaults=defaults or field.name == "spec")
        if text := texts.get(field.name):
            part = {"description": text} | {key: value for key, value in part.items() if key != "description"}
        if defaults and field.default not in (NODEFAULT, None):
            part["default"] = field.default
        if field.name == "metadata":
            del part["description"]  # the API server allows only restrictions of the name there
        properties[field.encode_name] = part
    found: Schema = {"description": _one_line(struct.cls.__doc__ or ""), "type": "object"}
    if required := [field.encode_name for field in struct.fields if field.required]:
        found["required"] = required
    return found | {"properties": properties}
