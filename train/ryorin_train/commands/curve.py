"""`ryorin train curve`: how an adapter was trained, as a picture."""

from __future__ import annotations

from pathlib import Path

import click

from ryorin.commands.common import catalog_session, json_option, print_json


@click.command("curve")
@click.argument("name", metavar="ADAPTER")
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="The SVG file; ADAPTER.svg unless named.")
@json_option
def curve_command(name: str, out: Path | None, as_json: bool) -> None:
    """
    Draw how ADAPTER was trained: loss, held-out scores, margins and rewards over steps and epochs, as an SVG file.

    It is drawn from loss.jsonl in the adapter's folder, which holds every figure; --json prints its lines, and draws
    only where --out says.

    \b
    Example:
        ryorin train curve support-1f0c2a9b7d3e --out curve.svg
    """
    from ryorin_train.adapters import get_adapter
    from ryorin_train.checkpoints import CURVE_FILE
    from ryorin_train.judging.curve import curve_file
    from ryorin_train.progress import read_curve

    with catalog_session() as (catalog, session):
        row, _ = get_adapter(session, name)
        lines = read_curve(catalog.settings.adapters_dir / row.name / CURVE_FILE)
    target = out or Path(f"{name}.svg")
    if out is not None or not as_json:
        target.write_text(curve_file(lines, name), encoding="utf-8")
    if as_json:
        print_json(lines)
    else:
        click.echo(str(target))
