"""Grading somebody's own code: running it apart, searching for the smallest failure, hints, the file to start from."""
