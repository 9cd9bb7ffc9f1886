"""MODEL_CARD.md: what a delivered model is for, what it comes from, and how good it may be expected to be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from stemcell_lit.base.markdown import in_markdown, markdown_table
from stemcell_lit.deliver.mean import counted_words
from stemcell_lit.evaluate.intervals import METRICS
from stemcell_lit.experiment.results import TITLES
from stemcell_lit.report.numbers import interval, percent

PICTURE = "calibration.png"


def card(about: Mapping[str, Any], sureness: Sequence[str]) -> str:
    """The card's text.

    Args:
        about: `delivered` of model.json.
        sureness: what was found of temperature and threshold, a sentence each.
    """
    data, classes = about["data"], about["classes"]
    simulated, whole = bool(data["simulated"]), data["learned_groups"] >= data["groups"]
    lines = [
        f"# {in_markdown(about['method'])}: {', '.join(map(in_markdown, classes))}",
        "",
        *_paragraph(
            f"Tells {len(classes)} classes of patches of microscope pictures apart. It was learned from "
            f"{'' if whole else 'a part of '}{data['patches']} {'**simulated** ' if simulated else ''}patches of "
            f"{'' if whole else str(data['learned_groups']) + ' of '}{data['groups']} groups (a group is "
            f"what a split never divides){', no real cell among them' if simulated else ''}, and is "
            "for patches and movies of the same kind: the same cells, microscope, contrast and pixel size. Research "
            "use only; it is no diagnostic device."
        ),
        "```bash",
        "stemcell-lit predict movie=movie.tif checkpoint=model out=maps      # class maps of a movie",
        "stemcell-lit evaluate checkpoint=model store=stores/other out=scores # scores on other labelled patches",
        "```",
        "",
        "```python",
        "from stemcell_lit import Classifier",
        "",
        'found = Classifier.load("model").predict(pixels)  # uint8 (patches, height, width)',
        "```",
        "",
        "## What it is",
        "",
        *_what(about),
        "",
        "## Data",
        "",
        f"Store: {in_markdown(data['store'])}, content hash `{data['content_hash'][:16]}`"
        + (", **simulated**." if simulated else "."),
        "",
        *markdown_table(
            ["class", "patches", "groups"],
            [[c, *data["classes"][c].values()] for c in classes],
            {"patches", "groups"},
        ),
        "",
        "## Scores",
        "",
        *_paragraph(
            f"Cross-validated, in %, with 95 % intervals over {data['tested_groups']} tested groups: **of the "
            f"single {_kind(about)} of {in_markdown(about['method'])}, each on the groups that it has not seen"
            + ("** in simulated movies" if simulated else "**")
            + ". They are the row of the table (table.csv, report.html). The model here is "
            + (
                "trained anew on all groups"
                if about["refit"]
                else f"the mean of such {_kind(about)}, which together have seen "
                + ("every group" if whole else f"{data['learned_groups']} groups")
            )
            + (
                ": no patch is left on which it could be scored itself. A mean is as a rule not worse than its parts, "
                "but that was not measured here."
                if whole
                else ". Other folds were not run: `evaluate` scores it on the groups that it has not seen."
            )
            + (
                " The split is leaky: patches of one group lie on both sides, and the scores are too high."
                if about["split"] == "leaky"
                else ""
            )
        ),
        *markdown_table(
            [
                "class",
                *(word for title in TITLES.values() for word in (title, f"{title}, interval")),
            ],
            [
                [
                    _name(name),
                    *(word for metric in METRICS for word in _cells(about["scores"][name][metric])),
                ]
                for name in about["scores"]
            ],
            set(TITLES.values()),
        ),
        "",
        *([_chosen(about), ""] if about["chosen_by"] else []),
        f"![Confusion matrix of the test patches, and share right over top probability]({PICTURE})",
        "",
        "## How sure it may be",
        "",
        *_sureness(about, sureness),
        "## Limits",
        "",
        *_limits(about),
    ]
    if about["onnx"] is not None:
        lines += ["", "## ONNX", "", *_onnx(about["onnx"])]
    return "\n".join(lines) + "\n"


def _paragraph(text: str) -> list[str]:
    return [text, ""]


def _kind(about: Mapping[str, Any]) -> str:
    """What the trials are, in a word: networks, or models where it is not they alone."""
    alone = not any(n["classic"] for n in about["networks"].values())
    return "networks" if alone else "models"


def _name(name: str) -> str:
    over = f" over {name.removeprefix('macro/')} classes"
    return f"macro{over}" if name.startswith("macro/") else name or "macro (mean over classes)"


def _cells(score: Mapping[str, float | None]) -> list[str]:
    told = [score[name] for name in ("mean", "low", "high")]
    mean, low, high = (math.nan if value is None else value for value in told)
    return [percent(mean), interval(low, high)]


def _what(about: Mapping[str, Any]) -> list[str]:
    given, temporal = about["input"], about["temporal"]
    um = "unknown um/px" if given["um_per_px"] is None else f"{given['um_per_px']:g} um/px"
    told = about["about"] or about["method"]
    trials = about["trials"]
    lines = [f"- Method: {in_markdown(about['method'])} ({in_markdown(told)})."]
    for node, n in about["networks"].items():
        several = "the mean of " if sum(n.values()) > 1 else ""
        lines.append(f"- Node `{in_markdown(node)}`: {several}{counted_words(n)}.")
    lines += [
        f"- Trained anew on all {about['data']['groups']} labelled groups, but for a validation share that chose when "
        "the training ended and gave the temperature; settings as in the trials."
        if about["refit"]
        else f"- From {len(trials)} trials: {', '.join(in_markdown(t['name']) for t in trials)}.",
        f"- Patches: {given['patch_px']} x {given['patch_px']} px, {um}"
        + (f", views at scales {given['scales']}" if len(given["scales"]) > 1 else "")
        + f"; gray values 0 to 255 (8 bit). Larger patches are averaged down by whole factors. {given['intensity']}",
        f"- Time: {temporal['kind']}"
        + (
            f", strength {temporal['strength']:g} (median of the trials)"
            if temporal["weighed"]
            else ""
        )
        + (f", windows in hours {temporal['windows']}" if temporal["windows"] else "")
        + ("; fitted on all labelled groups." if temporal["kind"] != "none" else "."),
        f"- Versions: {', '.join(f'{k} {v}' for k, v in about['versions'].items())}.",
    ]
    return lines


def _chosen(about: Mapping[str, Any]) -> str:
    told = ", ".join(
        f"{in_markdown(m)} {100 * f1:.1f}" for m, (f1, *_) in about["chosen_by"].items()
    )
    return (
        "The method is the one of the highest macro F1 on validation patches (in %: "
        f"{told}); test scores had no say. The best of several is a little lucky on the patches that chose it; the "
        "test patches of the table did not."
    )


def _sureness(about: Mapping[str, Any], said: Sequence[str]) -> list[str]:
    found = about["calibration"]
    lines = [f"- {sentence[0].upper()}{sentence[1:]}." for sentence in said]
    if not found["patches"]:
        return [*lines, ""]
    test = found["test"]
    rows = []
    for name, title in (
        ("ece", "expected calibration error"),
        ("log_loss", "log loss"),
        ("brier", "Brier score"),
    ):
        rows.append([title, *(f"{test[when][name]:.4f}" for when in ("before", "after"))])
    whose = (
        "the model's own validation share"
        if about["refit"]
        else "the validation patches of every fold"
    )
    return [
        *lines,
        "",
        *_paragraph(
            f"The temperature divides the logarithms of the class probabilities, after the constraint in time; it is "
            f"the one of least log loss on {whose}, as they are (classes are not weighed). It changes no call. "
            + (
                ""
                if about["refit"]
                else "Each fold's validation patches were asked of that fold's networks alone, the mean over its "
                "seeds. "
            )
            + f"A patch is unsure where the top probability is below {found['unsure_below']}."
        ),
        *_paragraph(
            "How well this works, on the test patches of every fold, by the fold's own networks, with the temperature "
            "and the threshold of the fold's validation patches alone (expected calibration error: mean distance of "
            "share right from top probability over 15 bins, weighed by their patches; Guo et al. 2017, equation 3):"
        ),
        *markdown_table(["on test patches", "before", "after"], rows, {"before", "after"}),
        "",
    ]


def _limits(about: Mapping[str, Any]) -> list[str]:
    given = about["input"]
    lines = [
        "- It knows the classes above and no other: whatever it is shown, it calls one of them.",
        "- Another microscope, contrast, pixel size or culture gives other pictures, of which nothing was measured.",
        "- Temperature and threshold hold for patches in the proportions of the validation patches"
        + (
            "."
            if about["refit"]
            else ", and were found on single folds; the mean is as a rule less sure."
        ),
    ]
    few = [c for c, n in about["data"]["classes"].items() if n["groups"] < 10]
    if few:
        lines.append(
            f"- {', '.join(map(in_markdown, few))}: fewer than 10 groups, so that the scores of the class may be luck."
        )
    if given["um_per_px"] is None:
        lines.append(
            "- The size of its pixels is unknown: nothing can tell that a movie has another."
        )
    if about["temporal"]["kind"] == "path":
        lines.append(
            "- The constraint in time works along tracks; patches without a track get what the networks say, at a "
            "temperature that was found with tracks. Class maps show the networks' probabilities, without temperature."
        )
    elif about["temporal"]["kind"] in ("window", "prior"):
        lines.append(
            "- The constraint in time speaks of hours since the culture began, as in the data; it misleads on a "
            "culture that grows at another pace."
        )
    if about["data"]["simulated"]:
        lines.append("- **It has seen simulated patches alone, and is no model for real cells.**")
    return lines


def _onnx(told: Mapping[str, Any]) -> list[str]:
    files, left = told["files"], told["left_out"]
    lines = [
        "Input `pixels`: float32 (patches, views, size, size), gray values 0 to 255; output `probabilities`: float32 "
        "(patches, targets), before the constraint in time and the temperature. A node says the mean of its files with "
        "the weights of model.json.",
        "",
    ]
    if files:
        lines.append(
            f"- {len(files)} networks; on {told['patches']} real patches their probabilities differ from torch's by "
            f"{max(files.values()):.1e} at most."
        )
    for why in dict.fromkeys(left.values()):
        names = ", ".join(name for name, other in left.items() if other == why)
        lines.append(f"- Not exported, for {in_markdown(why)}: {names}.")
    return lines
