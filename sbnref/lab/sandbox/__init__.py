"""The code that is graded, in a process of its own: what it is asked, what it answers, what it cannot reach.

``process.py`` is the grader's side. The other files are copied to where the code runs and stand by themselves.
"""
