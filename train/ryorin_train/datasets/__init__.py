"""
Datasets: immutable sets of training rows, named by the digest of their canonical form, of one tenant each.

    formats.py   files and Hugging Face directories → rows
    columns.py   CSV → rows, by a mapping of columns
    writing.py   rows → the same formats
    near.py      texts that are nearly the same, without comparing all pairs
    groups.py    rows that belong on one side of a split, and the split
    store.py     the catalog's rows: lineage, purpose statements, finding one by id or digest
"""
