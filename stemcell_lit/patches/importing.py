"""`stemcell-lit import`: which of the three ways to labels a source is, and the store made of it."""

from __future__ import annotations

from pathlib import Path

from stemcell_lit.base.files import check_target
from stemcell_lit.errors import UserError
from stemcell_lit.movies.suffixes import bare_name
from stemcell_lit.patches.crops import import_crops
from stemcell_lit.patches.extraction import extract
from stemcell_lit.patches.labelled import Select, has_maps
from stemcell_lit.patches.neighbours import wanted as neighbours_wanted
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.patches.tables import SUFFIXES as TABLES
from stemcell_lit.patches.tiles import import_tiles, is_tiles
from stemcell_lit.settings.field_types import check
from stemcell_lit.settings.group_keys import ExtractionConfig
from stemcell_lit.settings.patch_keys import ImportCommand, given_columns


def import_patches(config: ImportCommand) -> PatchStore:
    """Makes a store of labelled patches.

    A table that is a CSV names tiles (`frame, y, x, size, label`) or crops (`path, label`); any other table is class
    maps. Without a table: class maps beside the movies, `tiles.csv` beside a movie, `patches.csv` in a folder of
    crops, else a folder per class.

    Raises:
        UserError: the source is none of these, or cannot be read; something of the user's is where the store shall be.
    """
    check(config)
    source = Path(config.source)
    table = None if config.table is None else Path(config.table)
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder; expected a movie, or a folder of movies or crops"
        )
    if source.is_file() and source.suffix.lower() in TABLES:
        raise UserError(
            f"{source}: is a table; expected the folder of its pictures or the movie as source=, with "
            f"table={source} beside it"
        )
    if table is not None and not table.exists():
        raise UserError(
            f"{table}: no such file or folder; expected class maps, or a CSV of tiles or crops"
        )
    check_target(config.store, "store", inputs=[source, table])
    crops = neighbours_wanted(config.near) or config.movies is not None
    csv = table is not None and table.suffix.lower() in TABLES
    if (table is not None and not csv) or (table is None and has_maps(source)):
        if given_columns(config.columns):
            raise UserError("columns=: goes with a table of crops or tiles, found class maps")
        if config.without:
            raise UserError(
                f"without={list(config.without)}: goes with a table or folders of crops, found class maps; set the "
                "class to 0 in the maps"
            )
        _check_crops(crops, "class maps")
        return extract(
            source,
            Path(config.store),
            config.extraction,
            table=table,
            classes=config.classes,
            um_per_px=config.um_per_px,
            hours_per_frame=config.hours_per_frame,
            blocks=config.blocks,
            select=Select(config.channel, config.plane, config.position),
            unlabelled=config.unlabelled or (),
            colonies=config.colonies,
        )
    if source.is_file() or (table is not None and is_tiles(table, given_columns(config.columns))):
        table = table or source.with_name("tiles.csv")
        if not table.is_file():
            raise UserError(
                f"{source}: has no labels; expected {bare_name(source)}_classes.tif (class maps) or {table.name} "
                "beside it, or table= naming either; to label it by hand: stemcell-lit annotate"
            )
        _check_crops(crops, "tiles")
        return import_tiles(config, table)
    if config.position is not None:
        raise UserError(
            f"position={config.position}: crops have no stage positions; expected a movie; leave it out"
        )
    if config.extraction.scales != ExtractionConfig().scales:
        raise UserError(
            f"extraction.scales={config.extraction.scales}: crops know nothing of what lies around them; expected "
            "movies with class maps or tiles"
        )
    return import_crops(config)


def _check_crops(asked: bool, found: str) -> None:
    if asked:
        raise UserError(
            f"near= and movies= go with crops that a table names, found {found}; leave them out"
        )
