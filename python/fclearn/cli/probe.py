# SPDX-License-Identifier: Apache-2.0
"""Verb ``probe``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, command_of, say
from fclearn.cli.gates import GATE_HELP
from fclearn.cli.options import read_names
from fclearn.cli.splits import SplitOption, check_split


def probe(
    context: typer.Context,
    old: Annotated[Path, typer.Option(metavar="STORE", help="Old features of some items.")],
    new: Annotated[Path, typer.Option(metavar="STORE", help="New features of the same items.")],
    old_query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Real queries by the old model.")
    ] = None,
    new_query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="The same queries by the new model.")
    ] = None,
    qrels: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="TREC judgements of these queries, in place of labels."),
    ] = None,
    exclude_self: Annotated[
        bool,
        typer.Option(
            "--exclude-self", help="With --qrels: leave out gallery rows with the query's id."
        ),
    ] = False,
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    split: SplitOption = None,
    fit_share: Annotated[
        float, typer.Option(help="Share of what is split, the classes or the items, to fit on.")
    ] = 0.6,
    limit: Annotated[
        int, typer.Option(help="Most items taken, at random; judged ones come first.")
    ] = 50_000,
    query_limit: Annotated[int, typer.Option(help="Most queries measured with.")] = 5_000,
    adapters: Annotated[
        str, typer.Option(help="By commas.")
    ] = "procrustes,ridge,low-rank,mean-shift,mlp,compat-head",
    clusters: Annotated[
        int | None,
        typer.Option(help="With --qrels: clusters in place of classes; one for 20 items if unset."),
    ] = None,
    budget: Annotated[
        float, typer.Option(help="Share embedded anew for rank merge and reranking; 0: neither.")
    ] = 0.2,
    shortlist: Annotated[int, typer.Option(help="Rows that two-stage reranking looks at.")] = 100,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help=GATE_HELP),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    report_folder: Annotated[
        Path | None,
        typer.Option("--report", metavar="FOLDER", help="Write report.html and report.json here."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Go or no-go before anyone trains: what do pairs of old and new features allow?

    Fits every post-hoc map between the two spaces, and a head with the compatibility loss, on some
    of the items and measures them on the others, new queries against the old gallery and the
    other way round, beside the old model, the new one re-indexed, and the ceiling of the old space.
    Beside them, what a share of the gallery embedded anew (--budget) brings without any map: old
    and new index merged, or the old index reranked. Ends with a recommendation and a verdict:

    map (an adapter will do), train (compatibly), reindex (the old space has no room), stay (the new
    model is no better), or unclear (take more queries).

    Rows are matched by id. What is right is said by classes (columns as for fcl eval): without
    --old-query and --new-query every held-out item is a query, itself left out. Or by --qrels,
    lines "query-id 0 item-id grade" of the real queries: what they judge is not fitted on, and
    clusters take the place of classes.

    Held out are classes (--split classes, as usual) where the gallery will get classes that the
    sample does not have: new products, new people. Where it keeps those of the sample, and only
    the queries are new, --split items: some items of every class are fitted on (those of a group
    together, with --use-groups), the others are gallery and queries. Adapters that have seen the
    classes may do far better. Queries with an id or group that was fitted on are not asked.

    Gates: WAY.METRIC with way old/old, new/new, oracle/old, rank-merge, rank-merge-calibrated,
    two-stage-rerank, or an adapter (new queries on the old gallery), metric map or cmc@1, with
    --qrels also ndcg@10, of their grades; and update_gain, the best adapter's share of what
    re-indexing would bring. The verdict is on map.

    \b
    Examples:
      fcl probe --old sample/old --new sample/new
      fcl probe --old sample/old --new sample/new --gate "update_gain>=0.2"
      fcl probe --old sample/old --new sample/new --split items
      fcl probe --old docs/old --new docs/new --old-query q/old --new-query q/new \\
        --qrels judgements.txt --report runs/probe
    """
    from fclearn.cli.gates import Gate, finish
    from fclearn.cli.probe_inputs import ProbeStores, read_inputs
    from fclearn.cli.probe_show import JUDGED_METRICS, METRICS, notes_of, numbers_of, show
    from fclearn.probe import probe as run

    check_split(split)
    if qrels is not None and split == "classes":
        raise ValueError("--split: expected items or none with --qrels, which knows no classes")
    stores = ProbeStores(
        old=old,
        new=new,
        old_query=old_query,
        new_query=new_query,
        qrels=qrels,
        exclude_self=exclude_self,
        use_groups=use_groups,
        limit=limit,
        seed=seed,
    )
    stores.check()
    if report_folder is not None:
        from fclearn.report.probes import PROBE
        from fclearn.report.runs import check_report_folder

        check_report_folder(report_folder, PROBE)
    names = read_names(adapters)
    metrics = METRICS if qrels is None else JUDGED_METRICS
    known = {
        f"{way}.{metric}": "" if metric in metrics else "--qrels"
        for way in (*_WAYS, *names)
        for metric in JUDGED_METRICS
    }
    known["update_gain"] = ""
    if budget == 0:
        known |= dict.fromkeys((f"{way}.{m}" for way in _HALVES for m in metrics), "--budget")
    gates = [Gate.parse(text, known) for text in gate or []]
    result = run(
        **read_inputs(stores),
        split=split,
        fit_share=fit_share,
        adapters=names,
        clusters=clusters,
        budget=budget,
        shortlist=shortlist,
        metrics=metrics,
        query_limit=query_limit,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )
    show(result)
    if report_folder is not None:
        from fclearn.report import write_probe_report

        given = [old, new, old_query, new_query, qrels]
        write_probe_report(
            report_folder,
            result=result,
            notes=notes_of(result),
            facts={
                "command": command_of(context),
                "stores": [str(path) for path in given if path is not None],
                "gates": list(gate or []),
            },
        )
        say(f"report: {report_folder / 'report.html'}")
    numbers = {**dict.fromkeys(known), **numbers_of(result)}
    finish(result.to_dict(), gates, numbers, json=json)


_HALVES = ("rank-merge", "rank-merge-calibrated", "two-stage-rerank")
_WAYS = ("old/old", "new/new", "oracle/old", *_HALVES)
