"""A report as one HTML file: style and plots within it, no scripts, nothing fetched."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ryorin.digests import SHORT
from ryorin_train.checkpoints import CURVE_FILE
from ryorin_train.judging.curve import curve_drawing
from ryorin_train.judging.svg import LIGHT, SVG_STYLE, Point, intervals, stacked
from ryorin_train.judging.wording import figure_text, interval_text, p_text
from ryorin_train.progress import read_curve

STYLE = (
    ":root { color-scheme: light dark; "
    + " ".join(f"--{name}: {colour};" for name, colour in LIGHT.items())
    + """ }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #36414d; --page: #14191f;
  --panel: #1d242c; --one: #5aa9e6; --two: #e69a4c; --three: #8fb878; --four: #b195dd; --five: #9ca3af;
  --good: #6cc48d; --bad: #f0857d; } }
body { margin: 0 auto; max-width: 62rem; padding: 2rem 1.5rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Hiragino Sans", "Noto Sans JP", "IPAGothic", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p { max-width: 48rem; } .soft { color: var(--soft); } code { font-size: .9em; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0; } .scroll { overflow-x: auto; }
th, td { text-align: left; vertical-align: top; padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
ul.notes { padding: 0; list-style: none; } ul.notes li { background: var(--panel); border-left: 4px solid var(--two);
  padding: .5rem .8rem; margin: .4rem 0; } ul.levers li { border-left-color: var(--one); }
svg { width: 100%; height: auto; display: block; margin: .6rem 0; }
rect.right { fill: var(--good); } rect.knowledge { fill: var(--one); } rect.retrieval { fill: var(--two); }
rect.behaviour { fill: var(--four); } rect.unclear { fill: var(--five); }
.key i { display: inline-block; width: .7rem; height: .7rem; border-radius: 50%; margin: 0 .3rem 0 1rem; }
td.cell { text-align: center; } td.pre, pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .88em; }
details { margin: .3rem 0; } summary { cursor: pointer; }
"""
    + SVG_STYLE
)
SERIES = ("var(--one)", "var(--two)", "var(--three)", "var(--four)")


def html_report(report: Mapping[str, Any], curve: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page of an evaluation or a diagnosis. curve: the lines of the adapter's loss curve."""
    body = _evaluation(report) if report["kind"] == "evaluation" else _diagnosis(report)
    title = f"{report['kind'].capitalize()} of {report['tenant']}@{report['release']['version']}"
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(report["made_at"]))
    cases = report["cases"]
    trained = f" and {cases['train']} trained on" if cases.get("train") else ""
    head = (
        f"<h1>{escape(title)}</h1><p class='soft'>{made} · {escape(cases['file'])}: {cases['held_out']} held-out cases"
        f"{trained} · adapter {escape(report['release']['adapter'] or 'none')} · report "
        f"<code>{report['digest'][:SHORT]}</code></p>"
    )
    if drawn := curve_drawing(curve, "How the adapter was trained"):
        body += f"<h2>How the adapter was trained</h2>{drawn}"
    foot = (
        "<h2>How it was asked</h2><p class='soft'>"
        + escape(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report["how"].items()))
        + f". Release digest <code>{report['release']['digest'][:SHORT]}</code>, cases <code>{cases['digest'][:SHORT]}"
        "</code>. Intervals are 95%: bootstrap over cases, exact where all cases agree.</p>"
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{head}{body}{foot}</body></html>"
    )


def save(report: Mapping[str, Any], folder: Path, adapters: Path) -> Path:
    """
    Write report.json and report.html in a folder of the report's digest; returns the HTML's path.

    adapters: where adapters lie; the page shows how the release's was trained, if that was here.
    """
    name = report["release"]["adapter"]
    curve = read_curve(adapters / name / CURVE_FILE) if name else []
    place = folder / str(report["digest"])[:SHORT]
    place.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("report.json", json.dumps(report, ensure_ascii=False, indent=1)),
        ("report.html", html_report(report, curve)),
    ):
        fresh = place / f"{name}.tmp"
        fresh.write_text(text + "\n", encoding="utf-8")
        fresh.replace(place / name)
    return place / "report.html"


def _evaluation(report: Mapping[str, Any]) -> str:
    against = report["against"]
    parts = [_purpose(report["purpose"]), _notes(report["warnings"])]
    parts.append(f"<h2>Figures</h2>{_key(report)}{_figures_plot(report)}{_figures_table(report)}")
    if against:
        parts.append(
            f"<h2>Against release {against['version']}</h2><p>The difference on the same cases. Shares are tested by "
            "McNemar's exact test, means by random signs; a dot right of the line is more.</p>"
            f"{_differences_plot(report['comparison'])}{_comparison_table(report['comparison'])}"
        )
    if report["confusion"]:
        parts.append(f"<h2>Decisions</h2>{_confusion(report['confusion'])}")
    if report["groups"]:
        rows = [[row["by"], row["name"], str(row["cases"]), interval_text(row)] for row in report["groups"]]
        parts.append("<h2>All right, by group</h2>" + _table(["by", "", "#cases", "#share right"], rows))
    if report["gaps"]:
        rows = [
            [
                row["label"],
                f"{row['train']:.0%} of {row['train_cases']}",
                f"{row['held_out']:.0%} of {row['held_out_cases']}",
                interval_text(row["gap"], signed=True),
            ]
            for row in report["gaps"]
        ]
        parts.append(
            "<h2>Training cases against held-out ones</h2>" + _table(["", "#trained on", "#held out", "#gap"], rows)
        )
    if report["ability"]:
        parts.append(f"<h2>General ability</h2>{_ability(report['ability'])}")
    parts.append(f"<h2>What is wrong ({len(report['wrong'])})</h2>{_wrong(report['wrong'])}")
    return "".join(parts)


def _diagnosis(report: Mapping[str, Any]) -> str:
    levers = "".join(f"<li>{escape(row['advice'])}</li>" for row in report["levers"])
    counts = {row["cause"]: row["failures"] for row in report["causes"]}
    right = report["cases"]["held_out"] - sum(counts.values())
    bar = stacked([("right", "right", right), *((cause, cause, count) for cause, count in counts.items())])
    arms = []
    for name in ("right", "format", "decision", "facts", "citations", "refusal"):
        points, label = [], name
        for series, arm in enumerate(report["arms"]):
            row = next((row for row in arm["figures"] if row["name"] == name), None)
            if row:
                label = row["label"]
                points.append(Point(row["mean"], row["low"], row["high"], series, f"{row['mean']:.0%}"))
        if points:
            arms.append((label, points))
    key = "".join(
        f"<i style='background:{SERIES[series]}'></i>{escape(arm['name'])}" for series, arm in enumerate(report["arms"])
    )
    gains = [
        [
            row["adds"],
            f"{row['arm']} − {row['beside']}",
            interval_text({**row, "mean": row["difference"]}, signed=True),
            f"{row['better']} / {row['worse']}",
            p_text(row["p"]),
        ]
        for row in report["gains"]
    ]
    causes = [[row["cause"], f"{row['failures']} of {row['cases']}", interval_text(row)] for row in report["causes"]]
    failures = [
        [
            str(row["line"]),
            row["question"],
            row["cause"],
            row["reason"],
            str(row["rank"] or "-"),
            row["error"] or row["answer"],
        ]
        for row in report["failures"]
    ]
    return (
        f"<h2>Which lever to pull</h2><ul class='notes levers'>{levers}</ul>"
        f"<h2>Why answers of the arm '{escape(report['arm_of_causes'])}' are wrong</h2>{bar}"
        + _table(["cause", "#cases", "#share of all cases"], causes)
        + f"<h2>Arms</h2><p class='key'>{key}</p>{intervals(arms)}"
        + _table(["adds", "", "#answers all right", "#won / lost", "#p (McNemar)"], gains)
        + f"<h2>Failures ({len(failures)})</h2>"
        + _table(["line", "question", "cause", "why", "#rank", "answer"], failures)
    )


def _purpose(purpose: Any) -> str:
    if not purpose:
        return ""
    text = purpose if isinstance(purpose, str) else json.dumps(purpose, ensure_ascii=False, indent=1)
    return f"<h2>Purpose</h2><pre>{escape(text)}</pre>"


def _notes(warnings: Sequence[Mapping[str, Any]]) -> str:
    if not warnings:
        return ""
    items = "".join(
        f"<li><b>{escape(row['code'].replace('_', ' '))}</b>: {escape(row['text'])}{_lines(row['lines'])}</li>"
        for row in warnings
    )
    return f"<h2>Warnings</h2><ul class='notes'>{items}</ul>"


def _lines(lines: Sequence[int]) -> str:
    if not lines:
        return ""
    shown = ", ".join(map(str, lines[:20])) + (f" and {len(lines) - 20} more" if len(lines) > 20 else "")
    return f" <span class='soft'>(lines {shown})</span>"


def _key(report: Mapping[str, Any]) -> str:
    if not report["against"]:
        return ""
    names = [f"release {report['release']['version']}", f"release {report['against']['version']}"]
    return (
        "<p class='key'>"
        + "".join(f"<i style='background:{SERIES[place]}'></i>{escape(name)}" for place, name in enumerate(names))
        + "</p>"
    )


def _figures_plot(report: Mapping[str, Any]) -> str:
    rows = []
    theirs = {row["name"]: row for row in report["against_figures"] or ()}
    for row in report["figures"]:
        if row["kind"] != "mean":
            points = [
                Point(one["mean"], one["low"], one["high"], series, f"{one['mean']:.0%}")
                for series, one in enumerate((row, theirs.get(row["name"])))
                if one
            ]
            rows.append((row["label"], points))
    return intervals(rows)


def _figures_table(report: Mapping[str, Any]) -> str:
    theirs = {row["name"]: row for row in report["against_figures"] or ()}
    head = ["", "#cases", f"#release {report['release']['version']}"]
    if report["against"]:
        head.append(f"#release {report['against']['version']}")
    rows = []
    for row in report["figures"]:
        cells = [row["label"], str(row["cases"]), figure_text(row)]
        if report["against"]:
            cells.append(figure_text(theirs[row["name"]]) if row["name"] in theirs else "-")
        rows.append(cells)
    table = _table(head, rows)
    times = report["latency"]
    if times:
        table += (
            f"<p class='soft'>Time to the whole answer: median {times['median_s']:.2f} s, 95th percentile "
            f"{times['p95_s']:.2f} s, up to {report['how']['concurrency']} at once.</p>"
        )
    return table


def _differences_plot(rows: Sequence[Mapping[str, Any]]) -> str:
    drawn = [
        (row["label"], [Point(row["difference"], row["low"], row["high"], 0, f"{row['difference']:+.0%}")])
        for row in rows
        if row["kind"] == "share"
    ]
    reach = max([0.1, *(abs(value) for _, [point] in drawn for value in (point.low, point.high))])
    limit = min(1.0, -(-reach * 20 // 1) / 20)  # the next twentieth
    return intervals(drawn, -limit, limit, zero=0.0)


def _comparison_table(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [
            row["label"],
            str(row["cases"]),
            figure_text({**row, "mean": row["difference"]}, signed=True),
            f"{row['wins']} / {row['losses']}" if "wins" in row else "-",
            p_text(row["p"]),
            row["test"],
        ]
        for row in rows
    ]
    return _table(["", "#cases", "#difference", "#won / lost", "#p", "test"], cells)


def _confusion(found: Mapping[str, Any]) -> str:
    most = max(max(row) for row in found["counts"]) or 1
    head = "".join(f"<th class='n'>{escape(name)}</th>" for name in found["said"])
    body = ""
    for name, counts in zip(found["expected"], found["counts"], strict=True):
        cells = ""
        for said, count in zip(found["said"], counts, strict=True):
            colour = "var(--good)" if said == name else "var(--bad)"
            shade = f"color-mix(in srgb, {colour} {60 * count / most:.0f}%, transparent)"
            cells += f"<td class='cell' style='background:{shade}'>{count}</td>"
        body += f"<tr><th>{escape(name)}</th>{cells}</tr>"
    table = f"<table style='width:auto'><tr><th></th>{head}</tr>{body}</table>"
    return f"<p>Expected in rows, said in columns.</p><div class='scroll'>{table}</div>"


def _ability(found: Mapping[str, Any]) -> str:
    plot = intervals(
        [
            (
                name,
                [
                    Point(
                        found[name]["mean"],
                        found[name]["low"],
                        found[name]["high"],
                        series,
                        f"{found[name]['mean']:.0%}",
                    )
                ],
            )
            for series, name in enumerate(("base", "tuned"))
        ]
    )
    languages = ", ".join(
        f"{name}: {row['base']:.0%} → {row['tuned']:.0%} of {row['questions']}"
        for name, row in found["by_language"].items()
    )
    return (
        f"<p>{found['questions']} fixed questions without prompt and documents, base model against adapter: "
        f"{found['better']} won, {found['worse']} lost, p {p_text(found['p'])}. {escape(languages)}.</p>{plot}"
    )


def _wrong(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "<p>Nothing.</p>"
    cells = []
    for row in rows:
        expected = {name: value for name, value in row["expected"].items() if value not in (None, False)}
        cells.append(
            [
                str(row["line"]),
                row["question"],
                ", ".join([*row["wrong"], *row["tone"]]),
                json.dumps(expected, ensure_ascii=False),
                row["error"] or row["answer"],
            ]
        )
    return _table(["line", "question", "wrong", "expected", "answer"], cells)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; a head that begins with # is of numbers."""
    numeric = [name.startswith("#") for name in head]
    titles = "".join(
        f"<th{' class=n' if n else ''}>{escape(name.removeprefix('#'))}</th>"
        for name, n in zip(head, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f"<td class='{'n' if n else 'pre' if name in ('answer', 'expected') else ''}'>{escape(cell)}</td>"
            for cell, name, n in zip(row, head, numeric, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    return f"<div class='scroll'><table><tr>{titles}</tr>{body}</table></div>"
