"""Handing out and handing in: a folder for students, and what graders take of it."""
