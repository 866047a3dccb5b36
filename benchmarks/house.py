"""The size and shape of the package: modules, floors, import edges, lines; of the working tree, or of a git revision.

usage: python -m benchmarks.house [REVISION]

A floor is the length of the longest chain of imports below a module. Imports for type checkers alone do not count;
those inside functions do.
"""

import argparse
import ast
import io
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "harvester"
LARGEST = 10


def sources(revision: str | None) -> dict[str, str]:
    """Return the text of each module by its path, such as harvester/run/job.py."""
    if revision is None:
        return {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
    names = _git("ls-tree", "-r", "--name-only", revision, f"{PACKAGE}/").splitlines()
    return {name: _git("show", f"{revision}:{name}") for name in names if name.endswith(".py")}


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def module_of(path: str) -> str:
    """Return a module's dotted name; a package's for its __init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def package_of(module: str) -> str:
    """Return the folder that a module belongs to; the package itself for modules at the top."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 else PACKAGE


def imports(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Return which of the modules each of them imports. modules: texts by dotted name."""
    return {
        name: {each for each in _imported(ast.parse(text), modules) if each != name} for name, text in modules.items()
    }


def _imported(tree: ast.AST, modules: Mapping[str, str]) -> Iterator[str]:
    for node in _nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules or node.module in modules:
                    yield inner if inner in modules else node.module


def _nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run: all but what stands under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from _nodes(node)


def floors(edges: Mapping[str, set[str]]) -> int:
    """Return the number of modules in the longest chain of imports; a circle is cut where it closes."""
    under_way: set[str] = set()

    @cache
    def height(name: str) -> int:
        if name in under_way:
            return 0
        under_way.add(name)
        result = 1 + max((height(each) for each in edges[name]), default=0)
        under_way.discard(name)
        return result

    return max(map(height, edges))


def comment_lines(text: str) -> int:
    """Count the lines that hold nothing but a comment."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip() for token in tokens)


def report(revision: str | None) -> None:
    """Print the figures."""
    texts = sources(revision)
    modules = {module_of(path): text for path, text in texts.items()}
    edges = imports(modules)
    between = {(package_of(name), package_of(each)) for name, found in edges.items() for each in found}
    folders = Counter(package_of(module_of(path)) for path in texts if not path.endswith("__init__.py"))
    lines = {name: text.count("\n") for name, text in modules.items()}
    total = sum(lines.values())
    print(f"{revision or 'working tree'}: {folders.total()} modules, {total:,} lines")
    print(f"  folders       {', '.join(f'{name} {count}' for name, count in folders.most_common())}")
    print(f"  floors        {floors(edges)}")
    print(f"  import edges  {sum(map(len, edges.values()))}, {sum(a != b for a, b in between)} between folders")
    print(f"  comment lines {sum(map(comment_lines, modules.values())) / total:.1%}")
    print(f"  ten largest   {', '.join(f'{name} {count}' for name, count in Counter(lines).most_common(LARGEST))}")


def main() -> int:
    """Print the figures of the working tree, or of a revision."""
    parser = argparse.ArgumentParser(description="Modules, floors, import edges and lines of the package.")
    parser.add_argument("revision", nargs="?", help="a git revision; the working tree by default")
    report(parser.parse_args().revision)
    return 0


if __name__ == "__main__":
    sys.exit(main())
