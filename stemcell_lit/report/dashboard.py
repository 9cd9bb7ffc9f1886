"""The W&B workspace that compares TPR and F1 across methods, defined in code.

Built from the trials' results, so its panels name nothing but what `tracking` logs for them. It is written to
dashboard.json in any case, and saved to W&B where the logger is online.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stemcell_lit.base.files import check_files, write_whole
from stemcell_lit.errors import UserError
from stemcell_lit.experiment import tracking
from stemcell_lit.experiment.results import collect, flatten
from stemcell_lit.settings.group_keys import LoggerConfig
from stemcell_lit.settings.keys import role_of
from stemcell_lit.settings.roles import Role

FILE = "dashboard.json"
METHOD = "method.name"  # the key of a run's config that bars and curves are grouped by


def dashboard(out: str | Path, logger: LoggerConfig) -> Path:
    """Writes the workspace over a folder's results as dashboard.json; online, also saves it to W&B.

    Returns:
        The file: entity, project, name and spec, as W&B takes it.

    Raises:
        UserError: no results, or the extra `dashboard` is not installed.
    """
    out = Path(out)
    check_files(out, [FILE])
    made = workspace([trial.info for trial in collect(out)], logger, out.resolve().name)
    if logger.wandb == "online":
        try:
            import wandb

            made.entity = logger.entity or wandb.Api().default_entity
            made.save()
            print(made.url)
        except Exception as error:
            warnings.warn(
                f"W&B did not take the dashboard ({error}); it is in {out / FILE}", stacklevel=2
            )
    spec = made._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    content = {"entity": made.entity, "project": made.project, "name": made.name, "spec": spec}
    write_whole(out / FILE, json.dumps(content, indent=1) + "\n")
    return out / FILE


def workspace(infos: Sequence[Mapping[str, Any]], logger: LoggerConfig, group: str) -> Any:
    """The workspace, not saved, over contents of result.json: methods, classes, confusion, settings, training.

    Only runs of the W&B group are shown.

    Raises:
        UserError: the extra `dashboard` is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise UserError(
            f'the dashboard needs the extra `dashboard` ({error}): pip install "stemcell_lit[dashboard]"'
        ) from error
    method = wr.Config(METHOD)

    def bars(name: str, title: str) -> Any:
        return wr.BarPlot(
            title=title,
            metrics=[name],
            groupby=method,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",  # over folds and seeds
            max_bars_to_show=50,
            max_runs_to_show=500,
        )

    def lines(axis: str, names: Sequence[str]) -> Iterator[Any]:
        for name in names:
            yield wr.LinePlot(
                title=name,
                x=axis,
                y=[name],
                groupby=method,
                groupby_aggfunc="mean",
                groupby_rangefunc="minmax",
            )

    def matrix(name: str) -> Any:
        return wr.CustomChart(
            query={"summaryTable": {"tableKey": f"{name}_table"}},  # as wandb.plot_table names it
            chart_name="wandb/confusion_matrix/v1",
            chart_fields={"Actual": "true", "Predicted": "predicted", "nPredictions": "patches"},
            chart_strings={"title": name},
        )

    classes = list(infos[0]["classes"])
    known = set().union(*(tracking.summary(info) for info in infos))
    validated = [m for m in ("validation/f1/macro", "validation/tpr/macro") if m in known]
    charts = list(dict.fromkeys(name for info in infos for name in tracking.confusions(info)))
    training: dict[str, set[str]] = {}
    for info in infos:
        for name, curve in tracking.curves(info).items():
            training.setdefault(name, set()).update(k for point in curve for k in point)
    settings = varying([info["config"] for info in infos])
    sections = [
        ws.Section(
            name="Methods: mean over folds and seeds, standard deviation as whiskers",
            panels=[
                bars("tpr/macro", "macro TPR (recall), test"),
                bars("f1/macro", "macro F1, test"),
                *(bars(m, f"{m}: for choosing") for m in validated),
            ],
            is_open=True,
        ),
        ws.Section(
            name="Classes",
            panels=[
                bars(f"{kind}/{c}", f"{kind.upper()} of {c}, test")
                for c in classes
                for kind in ("tpr", "f1")
                if f"{kind}/{c}" in known
            ],
            is_open=True,
        ),
        ws.Section(name="Confusion, test patches", panels=[matrix(name) for name in charts]),
        ws.Section(
            name="Settings",
            panels=[
                wr.ParallelCoordinatesPlot(
                    title="settings that differ, and what they give",
                    columns=[
                        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key))
                        for key in (METHOD, "split.fold", "seed", *settings)
                    ]
                    + [
                        wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(m))
                        for m in (*validated[:1], "tpr/macro", "f1/macro")
                    ],
                )
            ],
        ),
        ws.Section(
            name="Training",
            panels=[
                *(
                    panel
                    for name in sorted(training)
                    for panel in lines(
                        f"{name}/images",
                        [
                            f"{name}/{k}"
                            for k in sorted(training[name] - {"images"})
                            if name == "curve/generator" or k in ("loss", "tpr/macro", "f1/macro")
                        ],
                    )
                ),
                *(
                    [wr.MediaBrowser(media_keys=["generator/grid"])]
                    if any(i["generator"] for i in infos)
                    else []
                ),
            ],
        ),
        ws.Section(
            name="Predictions",
            panels=[
                wr.WeavePanelSummaryTable(table_name=f"predictions/{name}")
                for name in ("counts", "mistakes", "sample")
            ],
        ),
    ]
    panels: list[Any] = [panel for section in sections for panel in section.panels]
    for i, panel in enumerate(panels):
        panel._id = f"panel{i:03d}"  # else random: the same results make the same file
    made = ws.Workspace(
        entity=logger.entity or "",
        project=logger.project,
        name=f"TPR and F1: {group}",
        sections=[section for section in sections if section.panels],
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Metric("Group") == (logger.group or group)],
            groupby=[ws.Config(key) for key in (METHOD, *settings)],
            pinned_columns=["summary:tpr/macro", "summary:f1/macro"],
        ),
    )
    # W&B's own name for a saved view; of the content's name, so that saving again replaces it
    made._internal_name = f"nw-{hashlib.sha256(made.name.encode()).hexdigest()[:11]}-v"
    return made


def varying(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings, by dotted name, whose plain value differs among trials of one method.

    What a method's name says already is none, nor is where and on which fold and seed a trial ran.
    """
    flat = [flatten(config) for config in configs]
    keys = sorted(key for key in set().union(*flat) if role_of(key) is Role.RESULT)
    found = []
    for key in keys:
        values: dict[Any, set[str]] = {}
        for config in flat:
            values.setdefault(config[METHOD], set()).add(json.dumps(config.get(key)))
        if any(len(v) > 1 for v in values.values()):
            found.append(key)
    return found
