#!/usr/bin/env python3
"""Writes NOTICES for a program: each crate in it, its licence, and the texts that the licences want kept.

usage: notices.py PACKAGE   (the output of `cargo metadata` comes by standard input)
"""

import json
import pathlib
import sys

NAMES = ("license", "licence", "copying", "notice", "copyright", "unlicense")


def crates_of(metadata, package):
    """All crates of others that the program is linked from."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    packages = {found["id"]: found for found in metadata["packages"]}
    [start] = [found["id"] for found in metadata["packages"] if found["name"] == package and not found["source"]]
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for dependency in nodes[node]["deps"]:
            # Built for the program itself, not for its tests or its build.
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                waiting.append(dependency["pkg"])
    crates = (packages[node] for node in seen)
    return sorted((crate for crate in crates if crate["source"]), key=lambda crate: (crate["name"], crate["version"]))


def texts_of(crate):
    folder = pathlib.Path(crate["manifest_path"]).parent
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().startswith(NAMES))
    for path in files:
        yield "\n".join(line.rstrip() for line in path.read_text(errors="replace").strip().splitlines())


def main():
    crates = crates_of(json.load(sys.stdin), sys.argv[1])
    owners = {}
    print(f"{sys.argv[1]} contains these Rust crates:\n")
    for crate in crates:
        print(f"  {crate['name']} {crate['version']}, {crate['license'] or 'see its text'}")
        for text in texts_of(crate):
            owners.setdefault(text, []).append(crate["name"])
    for text, names in sorted(owners.items(), key=lambda found: found[1]):
        print(f"\n{'-' * 80}\n{', '.join(dict.fromkeys(names))}:\n\n{text}")


main()
