"""Run the first Python block of a document, and compare what it prints with the next block: python tools/first_lines.py FILE"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run the block with this Python. It ends with an error if the block fails or prints something else."""
    text = Path(sys.argv[1]).read_text(encoding="utf-8")
    found = re.search(r"^```python\n(.*?)^```\n+```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if not found:
        sys.exit(f"{sys.argv[1]}: no Python block with its output")
    code, expected = found.groups()
    result = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    if result.returncode or result.stdout != expected:
        sys.exit(f"{sys.argv[1]}: exit code {result.returncode}, expected\n{expected}but it printed\n{result.stdout}")
    print(f"{sys.argv[1]}: its first lines print\n{expected}", end="")


if __name__ == "__main__":
    main()
