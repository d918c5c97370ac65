# SPDX-License-Identifier: Apache-2.0
"""Verb ``eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fclearn.cli.console import JsonFlag, command_of
from fclearn.cli.eval_shared import shared_queries
from fclearn.cli.gates import GATE_HELP
from fclearn.cli.options import read_names, read_rates

_MaybeStore = Annotated[Path | None, typer.Option(metavar="STORE")]


def evaluate(
    context: typer.Context,
    old_query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Old features of the queries.")
    ] = None,
    new_query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="New ones of the same images.")
    ] = None,
    old_gallery: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Old features of the gallery.")
    ] = None,
    new_gallery: _MaybeStore = None,
    independent_query: Annotated[
        Path | None,
        typer.Option(metavar="STORE", help="Of the new model trained without compatibility."),
    ] = None,
    independent_gallery: _MaybeStore = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(metavar="STORE", help="A model of a chain, oldest first; give each."),
    ] = None,
    model_gallery: Annotated[
        list[Path] | None, typer.Option(metavar="STORE", help="Its gallery, in the same order.")
    ] = None,
    query: Annotated[
        Path | None, typer.Option(metavar="STORE", help="Queries to evaluate alone.")
    ] = None,
    gallery: Annotated[
        Path | None, typer.Option(metavar="STORE", help="What they are searched in.")
    ] = None,
    across: Annotated[
        bool, typer.Option("--across", help="--query and --gallery are of two models.")
    ] = False,
    index: Annotated[
        Path | None, typer.Option(metavar="FILE", help="faiss index of the (old) gallery's rows.")
    ] = None,
    index_ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Id of each of its rows, one a line, as pushed."),
    ] = None,
    index_parameter: Annotated[
        list[str] | None, typer.Option(metavar="NAME=NUMBER", help="As nprobe=16, efSearch=64.")
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TREC judgements in place of labels.")
    ] = None,
    junk: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --query: lines 'query-id gallery-id', neither right nor wrong.",
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(metavar="RATES", help="With --query: TAR at these FAR, as 1e-4,1e-3."),
    ] = None,
    identify: Annotated[
        str | None,
        typer.Option(metavar="RATES", help="With --query: TPIR at these FPIR, as 0.01,0.1."),
    ] = None,
    exclude_self: Annotated[
        bool, typer.Option("--exclude-self", help="Leave out gallery rows with the query's id.")
    ] = False,
    use_groups: Annotated[
        bool,
        typer.Option("--use-groups", help="Leave out gallery rows of the query's own group."),
    ] = False,
    gate: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help=GATE_HELP),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            help="Of map, map@K, cmc@K, recall@K and others, by commas; map,cmc@1,cmc@5 unless "
            "given, map@100 with an index."
        ),
    ] = None,
    worst: Annotated[int, typer.Option(min=0, help="Show this many of the worst classes.")] = 0,
    slice_by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="With --worst: of the manifest, for classes."),
    ] = None,
    num_bootstrap: Annotated[int, typer.Option(help="Resamples behind the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    report_folder: Annotated[
        Path | None,
        typer.Option("--report", metavar="FOLDER", help="Write report.html and report.json here."),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Compare an old and a new model on feature stores: is the upgrade compatible?

    Prints the metrics of old and new queries on the old and the new gallery, with intervals, the
    update gain (the share of what re-indexing would bring that arrives without it; needs the
    independent model), and a verdict. Rows of the other stores are matched to the old ones by id.

    Without --old-gallery every query store is its own gallery, each query's own row left out.

    With --model twice or more, a chain: each model's queries against its own gallery and all older
    ones, by the first of --metrics.

    With --query, one store and one gallery; then also --verify (1:1, all pairs of a query and a
    gallery row) and --identify (1:N, where queries whose label the gallery lacks are the
    strangers).

    What is right is said by the manifests, by the first of these columns that all have: labels
    (several for a row, parted by |; rows that share one are right), class_name, label.
    Rows without one (empty, or a number below 0) are right for nothing. Or by --qrels, lines
    "query-id 0 gallery-id grade".

    With --index, the (old) gallery is searched as it is served, by the first ranks alone. Its rows
    are found by the ids that the index has or --index-ids gives, else by their order, and a few
    are compared with the gallery. Under torchrun, the processes share the queries; the numbers are
    those of one process.

    --report shows queries with their hits where the manifests have a column text, or path of images
    that are there. fcl report puts several reports side by side.

    Gates: update_gain, self_test_tax, negative_flip_rate, or ENTRY.METRIC, compared with a number
    or with each other. Of a chain: average_compatibility, average_accuracy, backward_compatibility,
    forward_compatibility, or 2/1 for models by number. Of one store: the metrics, tar@0.001 and
    tpir@0.1.

    \b
    Examples:
      fcl eval --old-query runs/old-test --new-query runs/new-test
      fcl eval --old-query q/old --old-gallery g/old --new-query q/new \\
        --gate "new/old.map>old/old.map" --gate "negative_flip_rate<=0.05" --worst 10
      fcl eval --old-query q/old --old-gallery g/old --new-query q/new --qrels judgements.txt
      fcl eval --model v1 --model v2 --model v3 --gate "average_compatibility>=1"
      fcl eval --query q/new --gallery g/old --across --index live.faiss \\
        --index-parameter nprobe=16 --metrics map@100,cmc@1
    """
    names = None if metrics is None else read_names(metrics)
    pair = (old_query, new_query, old_gallery, new_gallery, independent_query, independent_gallery)
    is_pair, is_chain = any(pair), bool(model or model_gallery)
    if is_pair + is_chain + (query is not None) > 1:
        raise ValueError("expected stores of one kind: --old-query and such, --model, or --query")
    if query is None and (gallery or across or junk or verify or identify):
        raise ValueError(
            "--query: expected one, as --gallery, --across, --junk, --verify or --identify is given"
        )
    if is_chain and (index or index_ids or index_parameter):
        raise ValueError("--index: expected two stores or one, a chain has many galleries")
    if slice_by is not None and not worst:
        raise ValueError("--slice-by: expected --worst, whose slices it makes")
    if report_folder is not None and query is not None:
        raise ValueError("--report: expected two models or a chain, one store alone has no report")

    if report_folder is not None:
        from fclearn.report.chains import CHAIN
        from fclearn.report.runs import UPGRADE, check_report_folder

        check_report_folder(report_folder, CHAIN if is_chain else UPGRADE)
    from fclearn.cli.eval_run import ServingIndex
    from fclearn.cli.eval_show import Show

    command = command_of(context)
    show = Show(gate or [], worst, slice_by, num_bootstrap, seed, json, report_folder, command)
    rest = (metrics, exclude_self, use_groups, across, index_parameter)
    stores = [*pair, *(model or []), *(model_gallery or []), query, gallery, qrels, junk]
    serving = ServingIndex(index, index_ids, index_parameter or [])
    with shared_queries([*stores, index, index_ids], rest):
        if is_chain:
            from fclearn.cli.eval_chain import Chain, run_chain

            run_chain(
                Chain(
                    model or [],
                    model_gallery or [],
                    qrels=qrels,
                    exclude_self=exclude_self,
                    use_groups=use_groups,
                    metric_name=names[0] if names else "map",
                ),
                show,
            )
        elif query is not None:
            from fclearn.cli.eval_single import Single, run_single
            from fclearn.evaluation.compatibility import report_metrics

            run_single(
                Single(
                    query,
                    gallery,
                    across=across,
                    index=serving,
                    qrels=qrels,
                    junk=junk,
                    verify=read_rates(verify, "--verify"),
                    identify=read_rates(identify, "--identify"),
                    exclude_self=exclude_self,
                    use_groups=use_groups,
                    metrics=names or report_metrics(None, has_index=index is not None),
                ),
                show,
            )
        else:
            for option, given in (("--old-query", old_query), ("--new-query", new_query)):
                if given is None:
                    raise ValueError(f"Missing option '{option}'.")
            from fclearn.cli.eval_pair import run_pair

            run_pair(
                {"old": (old_query, old_gallery), "new": (new_query, new_gallery),
                 "independent": (independent_query, independent_gallery)},
                qrels=qrels,
                exclude_self=exclude_self,
                use_groups=use_groups,
                metrics=names,
                index=serving,
                show=show,
            )  # fmt: skip
