"""What the files of results and artifacts hold, for the door through which they are read (`base/formats`)."""

from __future__ import annotations

from stemcell_lit.base import formats as form

_NUMBER = form.maybe(form.number())


_SCORE = form.record(
    dict.fromkeys(("value", "floor"), _NUMBER), {"std": _NUMBER, "floor_std": _NUMBER}
)


# quality.json: metric -> class -> numbers
QUALITY = form.record(
    {
        "encoder": form.text(),
        "quality": form.mapping(
            form.mapping(
                form.record(dict.fromkeys(("value", "std", "floor", "floor_std"), _NUMBER))
            )
        ),
    }
)


# of result.json: what it says of a generator
_TOLD = form.record(
    {"quality": form.mapping(_SCORE)},
    {
        "images": form.maybe(form.whole()),
        "images_trained": form.maybe(form.whole()),
        "metric": form.maybe(form.text()),
        "alarm": form.maybe(form.text()),
        "filters": form.maybe(form.listing(form.text())),
        "acceptance": form.maybe(form.mapping(form.mapping(form.number(0, 1)))),
        "missing": form.maybe(form.mapping(form.whole())),
    },
)


_THINNED = ("patches", "patches_before", "tracks", "tracks_before")


_COUNTS = form.maybe(form.mapping(form.whole()))


_SCORES = form.mapping(form.maybe(form.number()))


_MATRIX = form.matrix(form.whole())


_TEXTS = form.listing(form.text())


def _artifact(kind: str) -> form.Form:
    """The path of an artifact, from the folder of results: it can lie above, but is an artifact's."""
    told = f"the path of an artifact of the kind {kind.split('/', 1)[0]}"
    return form.text(4096, rf"([^\x00-\x1f]*/)?{kind}", told)


# What is read of result.json; other names may be there
RESULT = form.versioned(
    1,
    form.record(
        {
            "method": form.NAME,
            "fold": form.whole(0, 1_000_000),
            "seed": form.whole(0, 1 << 64),
            "classes": form.CLASSES,
            "data": form.record(
                {"content_hash": form.HASH},
                {
                    **dict.fromkeys(("real", "val", "test", "generated"), _COUNTS),
                    "simulated": form.flag,
                    "store": form.text(),
                },
            ),
            "split": form.record(
                {"kind": form.text()},
                {
                    **dict.fromkeys(("train", "val", "test"), _TEXTS),
                    "thinned": form.mapping(
                        form.record(
                            {**dict.fromkeys(_THINNED, form.whole()), "ratio": form.number(0)}
                        )
                    ),
                },
            ),
            "config": form.record(
                {},
                {
                    "method": form.record(
                        {},
                        {
                            "about": form.maybe(form.text()),
                            "rank": form.whole(0, 1000),
                            "parts": form.maybe(_TEXTS),
                            "claimed": form.flag,
                        },
                    ),
                    "hierarchy": form.record(
                        {}, {"subsets": form.maybe(form.mapping(form.listing(form.NAME, least=1)))}
                    ),
                },
            ),
        },
        {
            "hash": form.HASH,
            "outside": form.mapping(form.text(64)),
            "store": form.text(),
            "metrics": _SCORES,
            "validation": form.maybe(_SCORES),
            "importance": form.maybe(
                form.record(
                    {
                        "families": form.mapping(
                            form.record(dict.fromkeys(("drop", "std"), form.number()))
                        )
                    }
                )
            ),
            "confusion": _MATRIX,
            "stages": form.listing(
                form.record(
                    {"node": form.text(), "groups": form.listing(form.NAME), "curve": form.CURVE},
                    {"confusion": _MATRIX, "images": form.whole(), "capped": form.flag},
                )
            ),
            "tuning": form.maybe(
                form.record(
                    {
                        "taken": form.mapping(form.anything),
                        "tried": form.listing(
                            form.record(
                                {
                                    "settings": form.mapping(form.anything),
                                    "macro/f1": form.maybe(form.number(0, 1)),
                                }
                            )
                        ),
                    }
                )
            ),
            "generator": form.maybe(
                form.record(
                    {
                        "path": _artifact("generator/[0-9a-f]{4,64}"),
                        "generated": _artifact("generated(/[0-9a-f]{4,64})?/store"),
                    },
                    {"curve": form.CURVE},
                )
            ),
            "generator_quality": form.maybe(_TOLD),
            "temporal": form.record(
                {"kind": form.text()},
                {"strength": form.maybe(form.number()), "windows": form.mapping(form.anything)},
            ),
            "versions": form.maybe(form.mapping(form.text())),
            "machine": form.maybe(form.text()),
            "seconds": form.maybe(form.number(0)),
        },
    ),
)


# validation of a trial, all that a search asks for
VALIDATION = form.versioned(
    1, form.record({}, {"validation": form.maybe(form.mapping(form.maybe(form.number())))})
)


STAGE = form.record(
    {
        "node": form.text(),
        "groups": form.listing(form.NAME, least=1),
        "images": form.whole(),
        "train": form.mapping(form.listing(form.whole(), 2, 2)),
        "pseudo": form.whole(),
        "curve": form.CURVE,
    },
    {  # of a network
        "cycles": form.listing(
            form.record({"images": form.whole()}, dict.fromkeys(("loss", "tpr", "f1"), _NUMBER)),
            least=1,
        ),
        "kept": form.whole(),
        "capped": form.flag,
    },
)


PHASE = form.record(
    {"images": form.whole(), "curve": form.CURVE, "validation": form.mapping(form.number())}
)


ACCURACY = form.record(
    dict.fromkeys(("val", "test"), form.listing(form.matrix(form.whole()), least=1)), more=False
)


FACTS = form.record(
    {
        "images": form.whole(),
        "images_trained": form.whole(),
        "metric": form.maybe(form.text()),
        "alarm": form.maybe(form.text()),
        "filters": form.maybe(form.listing(form.text())),
        "acceptance": form.maybe(form.mapping(form.mapping(form.number(0, 1)))),
        "missing": form.maybe(form.mapping(form.whole())),
        "patches": form.mapping(form.whole()),
    }
)


SWEEP = form.versioned(
    1,
    form.record(
        {
            "format": form.exactly(1),
            "key": form.text(200, r"[A-Za-z_][\w.]*", "the name of a setting"),
            "values": form.listing(form.anything, least=1, most=1000),
            "fixed": form.mapping(form.anything),
            "label": form.maybe(form.text()),
        },
        more=False,
    ),
)


LEFT_OUT = form.versioned(1, form.record({"left_out": form.listing(form.text(), most=1000)}))
