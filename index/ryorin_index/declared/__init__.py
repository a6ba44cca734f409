"""
Departments as a file says them to be (`ryorin apply`): read it, compare it with the catalog, make it so.

`file.py` knows what may stand in it, `apply.py` what to do about it.
"""
