"""Checks the Kubernetes manifests against Kubernetes' own schemas, without a cluster and without a network.

    python deploy/check.py [DIRECTORY] [--kubernetes 1.30]…

Every object of every YAML file is held against the OpenAPI schema of its kind in each version asked for: by default all
that are supported, from 1.30 on, where `sleep` in preStop is on by default.  The schemas are the strict ones: a field
that Kubernetes does not know is a fault, and not dropped in silence as an API server may.  The package
kubernetes-validate carries them.  YAML that says a key twice is a fault as well: most parsers keep the last one.

Exit code 0: no fault.  1: each fault on a line of its own, with file, object and path.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from kubernetes_validate import utils as schemas

HERE = Path(__file__).resolve().parent
OLDEST = (1, 30)


class Once(yaml.SafeLoader):
    """Reads YAML in which each key is said once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} is said twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def documents(file: Path) -> list[Any]:
    """The YAML documents of a file.  Raises yaml.YAMLError."""
    return list(yaml.load_all(file.read_text(encoding="utf-8"), Loader=Once))


def manifests(directory: Path) -> Iterator[Path]:
    """What is sent to the API server: all YAML but the kustomization, which only kustomize reads."""
    return (file for file in sorted(directory.glob("*.yaml")) if file.name != "kustomization.yaml")


def supported() -> list[str]:
    """The versions of Kubernetes from `OLDEST` on that there are schemas of, oldest first."""
    versions = (version.split(".") for version in dict.fromkeys(schemas.all_versions()))
    return [f"{major}.{minor}" for major, minor, *_ in versions if (int(major), int(minor)) >= OLDEST]


def faults(directory: Path, versions: Sequence[str]) -> Iterator[str]:
    """What is wrong with the manifests, a line each."""
    for file in manifests(directory):
        try:
            objects = documents(file)
        except yaml.YAMLError as error:
            yield f"{file.name}: {' '.join(str(error).split())}"
            continue
        for each in objects:
            yield from (f"{file.name}: {fault}" for version in versions if (fault := _fault(each, version)))


def _fault(each: Any, version: str) -> str | None:
    try:
        what = f"{each['kind']} {each['metadata']['name']}"
    except (KeyError, TypeError):
        return "an object without kind and metadata.name"
    try:
        schemas.validate(each, version, strict=True)
    except schemas.ValidationError as error:
        path = ".".join(str(part) for part in error.absolute_path)
        return f"{what}: Kubernetes {version}: {path or 'at the top'}: {error.message}"
    except schemas.SchemaNotFoundError as error:
        return f"{what}: Kubernetes {version}: {error.message}"
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Checks Kubernetes manifests against Kubernetes' schemas.")
    parser.add_argument("directory", nargs="?", type=Path, default=HERE / "kubernetes")
    parser.add_argument("--kubernetes", action="append", metavar="VERSION", help=f"of {', '.join(supported())}")
    given = parser.parse_args(arguments)
    versions = given.kubernetes or supported()
    found = list(faults(given.directory, versions))
    for fault in found:
        print(fault)
    if not found:
        count = sum(len(documents(file)) for file in manifests(given.directory))
        print(f"{count} objects are valid for Kubernetes {', '.join(versions)}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
