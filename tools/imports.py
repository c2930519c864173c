"""Import every name of polar_rm that the Python blocks of documents import: python tools/imports.py README.md ..."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Import the names. An import that fails ends it with that error."""
    count = 0
    for name in sys.argv[1:]:
        for block in re.findall(r"^```python\n(.*?)^```$", Path(name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.Import):
                    wanted = [(each.name, None) for each in node.names]
                elif isinstance(node, ast.ImportFrom):
                    wanted = [(str(node.module), each.name) for each in node.names]
                else:
                    continue
                for module, attribute in wanted:
                    if module.split(".")[0] == "polar_rm":
                        loaded = import_module(module)
                        count += 1
                        if attribute:
                            getattr(loaded, attribute)
    if not count:
        sys.exit(f"nothing of polar_rm is imported in {', '.join(sys.argv[1:])}")
    print(f"{count} imports, of {import_module('polar_rm').__file__}")


if __name__ == "__main__":
    main()
