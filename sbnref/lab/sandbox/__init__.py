"""Run submitted code in a separate, confined process.

``process.py`` is the grader's side. The other files are copied into the process's folder and import nothing of sbnref.
"""
