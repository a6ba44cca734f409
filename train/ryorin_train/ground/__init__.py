"""
Grounding: rows without passages become rows with the passages that the gateway would put into their prompts.

    shares.py     how many rows have the right passage, wrong ones only, none
    regime.py     how the tenant is served, and how it refuses
    claims.py     what an answer rests on: the document its row names, the words it quotes, the amounts it states
    stored.py     the passages of the stores that hold it, and their copies
    citations.py  the markers of an answer, moved to where its passages stand
    rows.py       one answer with its passages, of a kind
    run.py        all of them, and the report
"""
