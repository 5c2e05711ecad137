"""Validates the chart's objects strictly: an unknown field is an error, and so is an unknown kind.

The schemas of Kubernetes come from kubernetes-validate, those of custom resources from the YAML of
their definitions. Expressions of CEL are not checked: only an API server does that.

Run by dev/lib/chart, with the Python of kubernetes-validate.
"""

import argparse
import functools
import pathlib
import sys

import jsonschema
import referencing
import yaml
from kubernetes_validate import utils


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kubernetes", required=True, help="the version, such as 1.25")
    parser.add_argument("--crds", required=True, help="the folder of the custom resources")
    parser.add_argument("files", nargs="+", help="rendered objects; their names say which values")
    arguments = parser.parse_args()
    schemas = Schemas(arguments.kubernetes, custom_schemas(arguments.crds))
    problems, count = [], 0
    for path in map(pathlib.Path, arguments.files):
        objects = load(path)
        count += len(objects)
        problems += [f"{path.stem}: {text}" for text in problems_of(objects, schemas)]
    for problem in problems:
        print(f"Kubernetes {arguments.kubernetes}: {problem}", file=sys.stderr)
    print(f"Kubernetes {arguments.kubernetes}: {count} objects, {len(problems)} problems")
    return 1 if problems else 0


def load(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.load_all(file, Loader) if document]


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """Refuses a key that is there twice: YAML would take the later one without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {key} is there twice")
        return super().construct_mapping(node, deep)


def problems_of(objects, schemas):
    names = [name_of(one) for one in objects]
    yield from (f"{name} is there twice" for name in sorted(set(names)) if names.count(name) > 1)
    for one, name in zip(objects, names):
        validator = schemas.validator(one["apiVersion"], one["kind"])
        if validator is None:
            yield f"{name}: no schema for {one['apiVersion']}"
            continue
        for error in validator.iter_errors(one):
            field = ".".join(map(str, error.absolute_path))
            yield f"{name}: {field}: {error.message}"


def name_of(one):
    space = one["metadata"].get("namespace", "")
    return f"{one['kind']} {space}/{one['metadata']['name']}"


class Schemas:
    """Validators of one version of Kubernetes, and of the custom resources."""

    def __init__(self, kubernetes, custom):
        self.custom = custom
        versions = [one for one in utils.all_versions() if utils.major_minor(one) == kubernetes]
        if not versions:
            sys.exit(f"kubernetes-validate has no schemas of Kubernetes {kubernetes}")
        self.folder = f"kubernetes-json-schema/v{versions[-1]}-local-strict"
        definitions = utils.schema_contents(f"{self.folder}/_definitions.json", kubernetes)
        self.definitions = referencing.Resource.from_contents(definitions) @ referencing.Registry()

    @functools.cache
    def validator(self, api_version, kind):
        """None if nobody knows the kind."""
        if (api_version, kind) in self.custom:
            return jsonschema.Draft4Validator(self.custom[api_version, kind])
        group, _, version = api_version.rpartition("/")
        form = "-".join(filter(None, [group.partition(".")[0], version]))
        try:
            name = f"{self.folder}/{kind.lower()}-{form}.json"
            schema = utils.schema_contents(name, api_version)
        except FileNotFoundError:
            return None
        registry = referencing.Resource.from_contents(schema) @ self.definitions
        return jsonschema.Draft202012Validator(schema, registry=registry)


def custom_schemas(folder):
    """A strict schema for each served version of each custom resource."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.yaml")):
        for definition in load(path):
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = strict(version["schema"]["openAPIV3Schema"])
                if version["served"]:
                    name = f"{spec['group']}/{version['name']}"
                    found[name, spec["names"]["kind"]] = schema
    return found


# What an OpenAPI schema of a custom resource says besides JSON Schema.
PRESERVE = "x-kubernetes-preserve-unknown-fields"
INT_OR_STRING = "x-kubernetes-int-or-string"


def strict(schema):
    """The JSON Schema that takes what an API server takes, and no other field."""
    schema = dict(schema)
    if "properties" in schema:
        fields = schema["properties"].items()
        schema["properties"] = {key: strict(value) for key, value in fields}
        if not schema.get(PRESERVE) and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = strict(schema[key])
    if schema.get(INT_OR_STRING):
        schema["type"] = ["integer", "string"]
    if schema.get("nullable") and "type" in schema:
        kinds = schema["type"]
        schema["type"] = (kinds if isinstance(kinds, list) else [kinds]) + ["null"]
    return schema


if __name__ == "__main__":
    sys.exit(main())
