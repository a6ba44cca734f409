"""
Training: from example conversations to a LoRA adapter that vLLM can serve.

    recipe.py      the hyperparameters and their defaults
    data.py        what a row is, and checking one
    datasets/      formats, near-duplicates and groups, the split, the catalog's datasets
    lint/          what is wrong with a dataset, and mending what is safe to mend
    render.py      examples → token ids and what is learned of them
    general_texts.py  texts on which a run may be held to its base model; keeping.py: by how far it moves there
    packing.py     rows → batches without padding, the beginning of all prompts computed once
    trunk.py       the layers below the first adapted one: computed once, not once an epoch
    fused_lora.py  the adapted layer in three matrix products
    trainer.py     TRL's SFTTrainer on those batches
    preference.py  the same for preference pairs: DPO
    rating.py      the same for thumbs: KTO
    auto.py        what is chosen where nobody decided, and why
    quality.py     which held-out scores are better; best.py: early stopping by them
    sweep.py       many runs, one adapter
    processes.py   one run by several processes
    trackers.py    TensorBoard, MLflow, W&B
    training.py    rows as tokens → adapter files
    checkpoints.py what an interrupted run continues from
    servable.py    what vLLM can serve; refused before training, checked after it
    job.py         one run as a job: tenant and data → adapter
    fine_tuning.py the API's jobs, done by a worker in a process of its own (child.py);
                   giving_way.py: it stands still while somebody waits for an answer
    adapters.py    the finished folder: manifest, name, rows in the catalog; deleting
    import_adapter.py, export_adapter.py, merge_adapters.py, compare_adapters.py: `ryorin adapter`
    cli.py         `ryorin train`
    commands/      `ryorin data`, `ryorin adapter`
    judging/       `ryorin train evaluate` and `ryorin diagnose`: what a release is worth, and why it fails

packing, trunk, fused_lora, trainer, preference, rating, best and callbacks import torch; the others import them inside
functions.
"""

TRAINER_VERSION = 4
"""Grows when the same data and recipe would give another adapter; identical runs of one version are reused."""
