"""``python -m sbnref`` is the command ``sbnref``."""

from .cli import app

app(prog_name="sbnref")
