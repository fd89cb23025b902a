"""``hansa audit privacy``: attacks on one's own study and rows, before anybody says yes."""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

from hansa.cli.dealt import Dealt
from hansa.cli.home import not_written
from hansa.cli.output import Json, Output, describe
from hansa.errors import PrivacyError, StudyError


def privacy(
    study: Path, /, dealt: Dealt, *, canaries: int = 1000, output: Path = Path("hansa-audit.html"), json: Json = False
) -> int:
    """Attack a study on your own rows, on this machine, to see what its protection is worth.

    It ends with status 10 if an attack found more than the guarantee allows.

    For example:

        hansa audit privacy study.toml --data table.csv --by hospital

    Args:
        study: a study file, TOML or Python.
        canaries: rows or parties that are made up, and put in by the toss of a coin.
        output: the page that is written."""
    from hansa import audit
    from hansa import study as studies

    out, federation = Output(json), studies.load(study)
    bare = audit.Bare.of(federation, tables := dealt.tables(out, federation))
    held_out = [dealt.tested_on] if dealt.tested_on else bare.held_out
    if not held_out:
        what = "no row is held out, so that nobody could say what the noise costs"
        raise StudyError(what, remedy="Raise evaluation.holdout, or give a --test table")
    run, exact, cosine = audit.with_and_without(federation, tables)
    guarantee, bound = run.guarantee, None
    charts = {"Epsilon": {f"claimed, {one.name}": one.epsilon for one in guarantee.observers}}
    most = guarantee["public"].epsilon
    try:
        charts["A row, read off an update (dB)"] = audit.read_rows(bare)
        bound, claim = audit.one_run(bare, canaries)
        charts["Epsilon"]["found, at least"], most = bound.epsilon, claim["public"].epsilon
    except StudyError as error:  # an attack does not know this kind of model
        out.say(str(error), style="yellow")
    charts["Members told, at 0.1% false alarms"] = {"found": audit.membership(bare)}
    if federation.privacy.unit == "example":
        allowed = min(1.0, math.exp(min(most, 99.0)) * audit.FALSE + federation.privacy.delta)
        charts["Members told, at 0.1% false alarms"]["allowed"] = allowed
    for name, value in run.model.score(*held_out).items():
        charts[f"Cost of noise: {name}"] = {"with noise": value, "without": exact.model.score(*held_out)[name]}
    charts["Cost of noise: the first update"] = {"cosine to the one without": cosine}
    for title, values in charts.items():
        out.table((title, "value"), values.items())
    try:
        output.write_text(_page(federation.name, str(guarantee), charts), encoding="utf-8")
    except OSError as error:
        raise not_written(output, error) from None
    out.say(f"The page is {output}")
    document: dict[str, object] = {"found": charts, "page": output}
    document |= {"guarantee": guarantee.to_json(), "lower_bound": bound and bound._asdict()}
    if bound and bound.epsilon > most:
        what = f"the guarantee is refuted: epsilon is {bound.epsilon:.3f} at least"
        document["error"] = describe(PrivacyError(what, remedy="Give no rows to this study"))
        out.say(what, style="red")
    out.finish(document)
    return PrivacyError.exit_status * ("error" in document)


def _page(name: str, words: str, charts: Mapping[str, Mapping[str, float]]) -> str:
    """One HTML page with a bar for each number; one without end is as long as the page is wide."""
    style = "body{font:16px sans-serif;max-width:44em;margin:2em auto}pre{white-space:pre-wrap}"
    head = f'<!doctype html><meta charset="utf-8"><title>Hansa</title><style>{style}</style>'
    parts = [head, f"<h1>Privacy of {escape(name)}</h1><pre>{escape(words)}</pre>"]
    for title, values in charts.items():
        longest = max([abs(v) for v in values.values() if math.isfinite(v)], default=0.0) or 1.0
        parts.append(f'<h2>{escape(title)}</h2><svg width="640" height="{24 * len(values)}">')
        for i, (label, value) in enumerate(values.items()):
            wide = 320 if value == math.inf else max(1, round(300 * max(0.0, value) / longest))
            text = f'<text y="{24 * i + 16}" x="{{}}">{{}}</text>'
            bar = f'<rect x="200" y="{24 * i + 4}" width="{wide}" height="16" fill="#47a"/>'
            parts += [bar, text.format(0, escape(label)), text.format(208 + wide, f"{value:.4g}")]
        parts.append("</svg>")
    return "\n".join(parts)
