"""Checks Kubernetes manifests against the schema of its API: SCHEMAS FILE...

SCHEMAS is a directory of JSON schemas that know no other keys than the API's.
"""

import json
import pathlib
import sys
import urllib.parse

import jsonschema
import yaml

schemas = pathlib.Path(sys.argv[1])
definitions = json.loads((schemas / "_definitions.json").read_text())
count = 0
for name in sys.argv[2:]:
    for document in yaml.safe_load_all(pathlib.Path(name).read_text()):
        group, _, version = document["apiVersion"].rpartition("/")
        parts = [document["kind"].lower(), group.split(".")[0], version]
        schema = json.loads((schemas / ("-".join(filter(None, parts)) + ".json")).read_text())
        # The schemas refer to each other as if they came from a server.
        where = urllib.parse.urljoin(schema.get("$id", "file:///"), "/api/_definitions.json")
        resolver = jsonschema.RefResolver.from_schema(schema, store={where: definitions})
        for error in jsonschema.Draft202012Validator(schema, resolver=resolver).iter_errors(document):
            sys.exit(f"{name}: {document['kind']}: {error.json_path}: {error.message}")
        count += 1
print(f"{count} objects")
