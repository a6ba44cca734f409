"""
Judging: a tenant's cases asked through the real engine, graded by rules, counted with what the counts are worth.

    cases.py        the file of cases and its rubric: strict reading
    grade.py        one answer: format, decision, facts, citations, refusal
    tone.py         one answer: です・ます and 敬語, phrases, reading level, hedging, length
    asking.py       cases to answers through an OpenAI client; answers are kept, a second run asks what is missing
    served.py       the release and what is asked beside it; the server and the key
    how.py          temperature, length, samples: the defaults
    run.py          a release asked and graded; both commands go through it
    measures.py     grades of all cases to figures with intervals, and two releases compared
    memory.py       cases that were trained on, training text that is said again
    ability.py      a small fixed set of general questions: the base model against the tuned one
    evaluate.py     `ryorin train evaluate`
    attribution.py  a failure's cause: knowledge, retrieval or behaviour
    diagnose.py     `ryorin diagnose`
    report.py       a run as HTML, with plots (svg.py); show.py: on the terminal; wording.py: figures in words
    cli.py          the two commands

It knows tenants, releases and stores by the catalog, and answers by HTTP. It knows neither vLLM nor the gateway's code.
"""
