"""Courses: the handout for students, and the grading of their submissions."""
