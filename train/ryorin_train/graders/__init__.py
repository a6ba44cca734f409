"""
Grading answers by the graders that `ryorin.graders` reads.

    grading.py       answers → grades, of every kind of grader
    similarity.py    how alike two texts are
    asking_model.py  a language model that grades

Python graders run in the sandbox of `ryorin_index`; reward models in `ryorin_train.reward`.
"""
