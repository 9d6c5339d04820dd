"""The README's example, run as a script, prints what the README shows."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_example(tmp_path):
    example, output = re.search(r"```python\n(import torch\n.*?)```\s*```text\n(.*?)```", README, re.DOTALL).groups()
    script = tmp_path / "first.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert done.stdout == output, done.stderr
