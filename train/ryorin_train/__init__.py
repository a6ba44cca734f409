"""
Training: from example conversations to a LoRA adapter that vLLM can serve.

    recipe.py      the hyperparameters and their defaults
    data.py        JSONL → examples; which are held out
    render.py      examples → token ids and what is learned of them
    packing.py     token rows → batches without padding, the beginning of all prompts computed once
    trunk.py       the layers below the first adapted one: computed once, not once an epoch
    fused_lora.py  the adapted layer in three matrix products
    trainer.py     TRL's SFTTrainer on those batches
    sft.py         token rows → adapter files
    servable.py    what vLLM can serve; refused before training, checked after it
    adapters.py    the finished folder: digest, manifest, name, rows in the catalog
    job.py         one run as a job: tenant and file → adapter
    cli.py         `ryorin train` and `ryorin adapter`
    judging/       `ryorin train evaluate` and `ryorin diagnose`: what a release is worth, and why it fails

packing, trunk, fused_lora, trainer and callbacks import torch; the others import them inside functions.
"""

TRAINER_VERSION = 2
"""Grows when the same data and recipe would give another adapter; identical runs of one version are reused."""
