"""`ryorin train`: words in, words out; the work is in job.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ryorin.commands.common import (
    json_option,
    opened_catalog,
    print_json,
    say,
    stopping_in_order,
    tenant_option,
)
from ryorin.training import GENERAL_TEXTS
from ryorin_train.auto import RULES, SHAPE, Wanted
from ryorin_train.commands.curve import curve_command
from ryorin_train.commands.options import NAMES, OrAuto, Several, purpose_option, read_purpose, reading_options
from ryorin_train.judging.cli import evaluate_command
from ryorin_train.processes import follows
from ryorin_train.recipe import PreferenceRecipe, RatingRecipe, Recipe, ReinforcementRecipe, RewardRecipe
from ryorin_train.sweep import SWEPT
from ryorin_train.trackers import TRACKERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ryorin_train.datasets.formats import Reading
    from ryorin_train.job import Finished, Request

PREFERENCE, RATING, REINFORCEMENT = PreferenceRecipe(), RatingRecipe(), ReinforcementRecipe()
METHODS: dict[str, type[Recipe]] = {"sft": Recipe, "dpo": PreferenceRecipe, "kto": RatingRecipe}

KEEP_GENERAL = click.option(
    "--keep-general",
    type=int,
    metavar="N",
    help=f"Beside examples (sft): 0 to {GENERAL_TEXTS} general texts on which the model is held to what the base model "
    "says, so that it forgets less. With the bundled base model each is about 56 tokens an epoch.",
)


@click.group()
def train() -> None:
    """
    Train an adapter: from examples (sft), from pairs of a better and a worse answer (dpo, reward), from thumbs (kto),
    or by what its own answers are worth (rl); judge it.

    \b
    Example:
        ryorin train sft --tenant support --data examples.jsonl
    """


train.add_command(evaluate_command)
train.add_command(curve_command)


def recipe_options(defaults: Recipe, swept: Sequence[str] = ()) -> Callable[[Any], Any]:
    """The options that every method has, with its defaults. swept: those that take several values."""

    def shown(name: str, kind: Any, text: str) -> Callable[[Any], Any]:
        """An option with its default, or one that is chosen from the data unless given (auto.py)."""
        option = "--" + name.replace("_", "-")
        if name not in {*RULES, *SHAPE}:
            return click.option(option, type=kind, default=getattr(defaults, name), show_default=True, help=text)
        usual = getattr(defaults, name)
        told = "auto, usually " + (
            ",".join(usual) if isinstance(usual, tuple) else "all" if usual is None else f"{usual:g}"
        )
        accepted = Several(kind) if name in swept else OrAuto(kind)
        return click.option(option, type=accepted, default=None, show_default=told, help=text)

    options: tuple[Callable[[Any], Any], ...] = (
        tenant_option,
        reading_options,
        purpose_option,
        click.option("--base", "base_name", metavar="NAME", help="The base model; the bundled one unless named."),
        shown("epochs", int, "Passes over the rows."),
        shown("rank", int, "LoRA rank: 1, 8, 16, 32 or 64."),
        shown("alpha", int, "LoRA scaling: alpha / rank."),
        shown("targets", NAMES, "The linear modules that are adapted."),
        click.option(
            "--rslora", is_flag=True, default=None, help="Scale by alpha / sqrt(rank) instead: for large ranks."
        ),
        click.option("--qlora", is_flag=True, help="Keep the base model in 4 bits while training; on a GPU only."),
        shown("learning_rate", float, "At its peak."),
        *([shown("batch_tokens", int, "Tokens of a step.")] if defaults.batch_rows is None else []),
        shown("layers", int, "Adapt only this many of the uppermost layers: an epoch then costs that share."),
        shown("held_out", float, "Share of rows never trained on."),
        click.option(
            "--validation", metavar="DATA", help="Rows to judge by, in a file of their own, instead of that share."
        ),
        shown("max_row_tokens", int, "The longest row accepted."),
        shown("seed", int, "Of every random choice."),
        click.option(
            "--patience",
            type=int,
            metavar="EPOCHS",
            help="End when the held-out rows were not answered better for so many epochs; the best epoch's weights "
            "are kept.",
        ),
        click.option(
            "--start-from", metavar="ADAPTER", help="Begin with this adapter's weights; of the same base and shape."
        ),
        click.option(
            "--report-to",
            multiple=True,
            metavar="TRACKER",
            help=f"Also tell {', '.join(TRACKERS)}; may be given several times.",
        ),
        click.option(
            "--again", is_flag=True, help="Train even if an identical run was trained, or interrupted, before."
        ),
        json_option,
    )

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@train.command("sft")
@click.option(
    "--data", required=True, metavar="DATA", help="A file or directory of examples, or a dataset's id or digest."
)
@recipe_options(Recipe())
@KEEP_GENERAL
def sft_command(as_json: bool, **given: Any) -> None:
    """
    Train an adapter on example conversations (supervised fine-tuning, LoRA).

    A file holds one example a line: {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content":
    "…"}]}, and, where the tenant answers from documents, "passages": [{"title": "…", "text": "…"}]; 'ryorin data add'
    names the other formats. Only the assistant's words are learned. The tenant's current prompt is put before each.
    Rows are held out by groups: near-duplicates, and rows of one passage or source, stay on one side.

    With --start-from a department's adapter grows out of an earlier one: its own, to add examples, or one that several
    departments share. What that one was trained on lives on in the new one; its manifest names it.

    A run that was interrupted is continued by the same command, from its last checkpoint, at most a minute old.

    \b
    Examples:
        ryorin train sft --tenant support --data examples.jsonl
        ryorin train sft --tenant support --data examples.jsonl --layers 15 --epochs 4
        ryorin train sft --tenant support --data 3f9a2c11 --purpose purpose.yaml
        ryorin train sft --tenant support --data faq.csv --map question=user,answer=assistant
        ryorin train sft --tenant support --data more.jsonl --start-from support-1f0c2a9b7d3e
    """
    from ryorin_train.job import run_sft

    _run(run_sft, Recipe, as_json=as_json, **given)


@train.command("dpo")
@click.option(
    "--data", required=True, metavar="DATA", help="A file or directory of pairs, or a dataset's id or digest."
)
@click.option(
    "--beta", type=float, default=PREFERENCE.beta, show_default=True, help="How strongly the start holds; DPO's beta."
)
@click.option(
    "--chosen-weight",
    type=float,
    default=PREFERENCE.chosen_weight,
    show_default=True,
    help="Of the preferred answers' own loss, which keeps them likely; 0: plain DPO.",
)
@recipe_options(PREFERENCE)
def dpo_command(as_json: bool, **given: Any) -> None:
    """
    Train an adapter on preference pairs (direct preference optimisation, LoRA).

    A file holds one pair a line, in OpenAI's form: {"input": {"messages": […]}, "preferred_output": [{"role":
    "assistant", "content": "…"}], "non_preferred_output": […]}, or in TRL's: "prompt", "chosen" and "rejected", lists
    of messages; and, where the tenant answers from documents, "passages".

    The answers should differ in what matters alone. Begin with an adapter that can do the task (--start-from); it is
    also the reference that --beta holds to. Preferences sharpen what is there; they do not teach a format from nothing.

    A run that was interrupted is continued by the same command, from its last checkpoint, at most a minute old.

    \b
    Example:
        ryorin train dpo --tenant support --data pairs.jsonl --start-from support-1f0c2a9b7d3e
    """
    from ryorin_train.job import run_dpo

    _run(run_dpo, PreferenceRecipe, as_json=as_json, **given)


@train.command("reward")
@click.option(
    "--data", required=True, metavar="DATA", help="A file or directory of pairs, or a dataset's id or digest."
)
@recipe_options(RewardRecipe())
def reward_command(as_json: bool, **given: Any) -> None:
    """
    Train a reward model on preference pairs (Bradley-Terry, LoRA and a head of one score).

    It learns to score the better answer of each pair above the worse one; the held-out accuracy says how often it does.
    It answers nobody: no release takes it. 'ryorin train rl' takes it as a grader: {"type": "reward_model", "name":
    "liked", "model": "support-1f0c2a9b7d3e"}. The file is as of 'ryorin train dpo'; --start-from begins with the
    weights of an adapter that answers.

    \b
    Example:
        ryorin train reward --tenant support --data pairs.jsonl
    """
    from ryorin_train.job import run_reward

    _run(run_reward, RewardRecipe, as_json=as_json, **given)


@train.command("rl")
@click.option("--data", required=True, metavar="DATA", help="A file of prompts, or a dataset's id or digest.")
@click.option(
    "--grader",
    "grader_file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What an answer is worth, JSON.",
)
@click.option(
    "--prompts",
    "batch_rows",
    type=int,
    default=REINFORCEMENT.batch_rows,
    show_default=True,
    help="Prompts of a step, about.",
)
@click.option(
    "--answers", type=int, default=REINFORCEMENT.answers, show_default=True, help="Answers to a prompt, compared."
)
@click.option(
    "--max-answer-tokens",
    type=int,
    default=REINFORCEMENT.max_answer_tokens,
    show_default=True,
    help="An answer is cut off there.",
)
@click.option(
    "--temperature", type=float, default=REINFORCEMENT.temperature, show_default=True, help="That answers are taken at."
)
@click.option(
    "--beta", type=float, default=REINFORCEMENT.beta, show_default=True, help="How strongly the start holds; 0: not."
)
@click.option(
    "--epsilon", type=float, default=REINFORCEMENT.epsilon, show_default=True, help="Where the ratio is clipped."
)
@click.option(
    "--iterations",
    type=int,
    default=REINFORCEMENT.iterations,
    show_default=True,
    help="How often answers are learned from before new ones are taken.",
)
@recipe_options(REINFORCEMENT)
def rl_command(as_json: bool, grader_file: Path, **given: Any) -> None:
    """
    Train an adapter by what its own answers are worth (reinforcement learning: GRPO, LoRA).

    A file holds one prompt a line: {"messages": [{"role": "user", "content": "…"}], …}, a conversation that ends before
    the answer; any other field is for the grader, which sees the row as 'item'. The grader is OpenAI's JSON:
    string_check, text_similarity, python (confined), score_model and multi; and json_schema, regex and reward_model.
    docs/training.md describes them.

    Several answers are taken to each prompt and compared: those above the mean become likelier. Where all answers are
    worth the same there is nothing to learn, so begin with an adapter that is right at times (--start-from). The
    held-out prompts are answered and graded before and after; the manifest has the paired test.

    \b
    Example:
        ryorin train rl --tenant support --data prompts.jsonl --grader grader.json --start-from support-1f0c2a9b7d3e
    """
    from functools import partial

    from ryorin_train.reinforcement.job import read_grader_file, run_rl

    grader = read_grader_file(grader_file)
    _run(partial(run_rl, grader=grader), ReinforcementRecipe, as_json=as_json, **given)


@train.command("sweep")
@click.option(
    "--data", required=True, metavar="DATA", help="As of the method: a file or directory, or a dataset's id or digest."
)
@click.option(
    "--method", type=click.Choice(list(METHODS)), default="sft", show_default=True, help="How a trial is trained."
)
@recipe_options(Recipe(), swept=SWEPT)
@KEEP_GENERAL
def sweep_command(method: str, as_json: bool, **given: Any) -> None:
    """
    Train with every combination of some learning rates, numbers of epochs and ranks, and keep the best adapter.

    The best is the one that answers most held-out rows right, word for word; where wordings are free, the one whose
    next token is right most often. The loss decides only between equals. A trial ends when an epoch was not better
    than the best for --patience epochs (2 unless given), and keeps that one's weights.

    The same command again continues an interrupted sweep: a finished trial is not trained again. Of two adapters the
    worse one is deleted at once; those that were there before are never touched.

    \b
    Examples:
        ryorin train sweep --tenant support --data examples.jsonl --learning-rate 3e-4,1e-3 --epochs 2,4 --rank 8,16
        ryorin train sweep --method dpo --tenant support --data pairs.jsonl --learning-rate 3e-5,1e-4,3e-4
    """
    from ryorin_train.commands.sweep import sweep

    request, values = _asked(**given)
    sweep(method, request, METHODS[method], values, as_json)


@train.command("kto")
@click.option(
    "--data", required=True, metavar="DATA", help="A file or directory of ratings, or a dataset's id or digest."
)
@click.option(
    "--beta", type=float, default=RATING.beta, show_default=True, help="How strongly the start holds; KTO's beta."
)
@click.option(
    "--good-weight", type=OrAuto(float), show_default="auto", help="Of answers with a thumb up: KTO's lambda_D."
)
@click.option(
    "--bad-weight", type=OrAuto(float), show_default="auto", help="Of answers with a thumb down: KTO's lambda_U."
)
@recipe_options(RATING)
def kto_command(as_json: bool, **given: Any) -> None:
    """
    Train an adapter on ratings: answers with a thumb up or down (Kahneman-Tversky optimisation, LoRA).

    A file holds one rating a line, in TRL's form: {"prompt": [{"role": "user", "content": "…"}], "completion":
    [{"role": "assistant", "content": "…"}], "label": true}, and, where the tenant answers from documents, "passages";
    or it is CSV with columns user, assistant and label. No answer needs a counterpart, but there must be both kinds;
    the fewer ones are weighed more. Begin with an adapter that can do the task (--start-from); it is also what --beta
    holds to.

    A run that was interrupted is continued by the same command, from its last checkpoint, at most a minute old.

    \b
    Example:
        ryorin train kto --tenant support --data thumbs.jsonl --start-from support-1f0c2a9b7d3e
    """
    from ryorin_train.job import run_kto

    _run(run_kto, RatingRecipe, as_json=as_json, **given)


def _run(method: Callable[..., Finished], recipe: type[Recipe], *, as_json: bool, **given: Any) -> None:
    from ryorin_train.progress import Listener

    request, values = _asked(**given)
    wanted = Wanted(recipe, {name: value for name, value in values.items() if value is not None})
    with stopping_in_order(), opened_catalog() as catalog:
        finished = method(catalog, request, wanted, Listener(say))
    if follows():
        return
    if as_json:
        print_json(finished.as_json())
        return
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in finished.metrics.items())
    say(f"{scores}; {finished.seconds:.0f} s")
    click.echo(finished.adapter)


def _asked(
    *,
    tenant_name: str,
    base_name: str | None,
    data: str,
    validation: str | None,
    reading: Reading,
    purpose_file: Path | None,
    start_from: str | None,
    again: bool,
    report_to: tuple[str, ...],
    **values: Any,
) -> tuple[Request, dict[str, Any]]:
    """What is asked for, and the values of its recipe."""
    from ryorin_train.job import Request

    purpose = read_purpose(purpose_file)
    request = Request(
        tenant_name, data, validation, reading, purpose, base_name, start_from, again, tuple(dict.fromkeys(report_to))
    )
    return request, values
