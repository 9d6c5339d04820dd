"""The README's example, run as a script."""

import re
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_ten_lines(tmp_path):
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "def train" in block]
    script = tmp_path / "example.py"
    script.write_text(example)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    rows = re.findall(r"tensor\((\[.*?\])\)", done.stdout)
    assert len(rows) == 3, done.stderr
    assert len(set(rows)) == 1
