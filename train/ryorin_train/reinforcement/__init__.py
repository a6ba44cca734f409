"""
Reinforcement learning: answers are sampled from the adapter that is trained, graded, and made more or less likely.

    rollout.py   prompts → answers, of a whole step at once
    policy.py    grades → advantages → the loss
    trainer.py   TRL's loop with both
    job.py       `ryorin train rl` as a job: the grader beside tenant and data

rollout, policy and trainer import torch.
"""
