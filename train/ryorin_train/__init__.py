"""
Training: from example conversations to a LoRA adapter that vLLM can serve.

    data.py      JSONL → examples; which are held out
    render.py    examples → token ids and what is learned of them
    packing.py   token rows → batches without padding, the shared beginning of all prompts computed once
    trunk.py     the layers below the first adapted one: computed once, not once an epoch
    trainer.py   TRL's SFTTrainer on those batches
    servable.py  what vLLM can serve; refused before training, checked after it
    adapters.py  the finished folder: digest, manifest, name, rows in the catalog
    sft.py       one run of supervised fine-tuning, as a job
    cli.py       `ryorin train` and `ryorin adapter`
"""

TRAINER_VERSION = 1
"""Grows when the same data and recipe would give another adapter; identical runs of one version are reused."""
