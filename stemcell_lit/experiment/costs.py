"""How long trials are expected to take: of use for the time left alone, where shares count, not seconds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stemcell_lit.base.artifacts import key_hash
from stemcell_lit.base.names import safe_name
from stemcell_lit.classify.features import FeatureTable
from stemcell_lit.experiment.classic import StoreFeatures, TrainedClassic
from stemcell_lit.experiment.generators import TrainedGenerator
from stemcell_lit.experiment.stages import TrainedStage, most_images
from stemcell_lit.experiment.trial import Trial, chooses, needs_generator, with_settings

# Seconds on one core, and images a second at 32 px, as the defaults have them; others are scaled by their pixels.
TRIAL = 5.0  # without any training
SEEN = 120_000  # images after which most stages no longer gain
STAGE = 2000.0
GENERATOR = 350.0
FEATURES = 200.0  # patches a second, at the size they are stored in
FIT = 3.0  # of a classical stage


def costs(trials: Sequence[Trial]) -> list[float]:
    """Expected seconds of each trial on one core.

    What several of them share is paid by the first in their order; what is made already by none.
    """
    paid: set[str] = set()
    found = []
    for trial in trials:
        total = TRIAL
        for key, seconds in _parts(trial):
            if key not in paid:
                paid.add(key)
                total += seconds
        found.append(total)
    return found


def _parts(trial: Trial) -> Iterator[tuple[str, float]]:
    """What a trial has trained: a name, and seconds."""
    config = trial.config
    yield from _trained(trial)
    if chooses(config) and config.method.learners:
        for choice in config.method.choices:
            tried = replace(with_settings(config, choice), seed=config.tune_seed)
            yield from _trained(replace(trial, config=tried))


def _trained(trial: Trial) -> Iterator[tuple[str, float]]:
    config, store = trial.config, trial.store
    learners, made = config.method.learners, ""
    pixels = (trial.size / 32) ** 2
    if needs_generator(config):
        generator = TrainedGenerator(trial, config.mix.source == "shuffled")
        made = key_hash(generator.key())
        if not trial.artifacts.locate(generator).is_dir():
            yield f"generator {made}", config.gan.images / GENERATOR * pixels
    if "network" in learners:
        seconds = min(SEEN, most_images(config.stage)) / STAGE * pixels * config.stage.members
        for node in trial.hierarchy.nodes:
            stage = TrainedStage(trial, node)
            if made or not trial.artifacts.locate(stage).is_dir():
                mixed = f"{made} {config.mix} {config.select}" if made else ""
                yield f"stage {key_hash(stage.key())} {mixed}", seconds
    if "classic" in learners:
        if not trial.artifacts.locate(StoreFeatures(store)).is_dir():
            where = f"features {store.content_hash} {safe_name(config.classic.features)}"
            yield where, len(store.pixels) / FEATURES * (store.size / 64) ** 2
        for node in trial.hierarchy.nodes:
            classic = TrainedClassic(trial, node, FeatureTable())
            if not trial.artifacts.locate(classic).is_dir():
                yield f"classic {key_hash(classic.key())}", FIT
