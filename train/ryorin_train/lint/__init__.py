"""
Lint: what is wrong with training rows, found by rules that can be read, before anything is trained on them.

    findings.py    a finding, a report
    turns.py       rows as questions with their answers; what an answer says
    lines.py       malformed and empty rows, white space, trivial answers
    repeats.py     duplicates, contradictions, leakage into held-out rows
    shapes.py      the answer schema, drift of format, labels that are missing or rule
    tone.py        drift of tone: です・ます and だ・である, contractions
    personal.py    telling and masking personal data and secrets
    privacy.py     rows that hold them
    grounding.py   answers against their passages; refusals and cases at the limit that are missing
    length.py      rows against the context window, by the base model's own tokenizer
    run.py         all of them on one dataset
    fix.py         a new rows' list with what is safe to mend mended
"""
