"""Trained stages of a trial, made once and shared as artifacts; the parts of a stage's training."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stemcell_lit.base import formats as form
from stemcell_lit.base.artifacts import Recipe
from stemcell_lit.base.checkpoints import read_whole
from stemcell_lit.base.files import finite, write_whole
from stemcell_lit.base.ranks import Ranks, first_rank
from stemcell_lit.base.terminal import printable
from stemcell_lit.classify.plateau import best, cycle_ends, gained, goes_on, refined_loss
from stemcell_lit.classify.pretrained import start_from
from stemcell_lit.classify.pseudo import pseudo_balance
from stemcell_lit.classify.stage import StageModule
from stemcell_lit.classify.trained import load_stage, save_weights
from stemcell_lit.classify.tree import Node
from stemcell_lit.data.datamodule import PatchDataModule
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import scores
from stemcell_lit.experiment.forms import PHASE, STAGE
from stemcell_lit.experiment.training import fit
from stemcell_lit.experiment.trial import Trial, rows_hash
from stemcell_lit.patches.store import PatchStore
from stemcell_lit.settings.group_keys import MixConfig, StageConfig
from stemcell_lit.settings.network_names import own_module
from stemcell_lit.settings.roles import determining

# What is done to a trained stage afterwards (`experiment/heads`) makes it no other
_LATER: dict[str, Any] = {"refit_head": False, "feature_dose": 0.0}
# Of a finished phase
_WEIGHTS, _KNOWN = "phase.ckpt", "phase.json"


@dataclass(frozen=True)
class TrainedStage(Recipe):
    """A trained stage of a trial: stage.ckpt, and stage.json with what is known of its training.

    Every stage has the whole budget: one that sees only part of the patches has fewer to learn from, not less to learn.

    Attributes:
        trial: whose.
        node: of its hierarchy.
        generated: patches that join the real ones; None: none do.
    """

    kind: ClassVar[str] = "stage"
    resumable: ClassVar[bool] = True
    together: ClassVar[bool] = True
    trial: Trial
    node: Node
    generated: PatchStore | None = None

    def key(self) -> dict[str, Any]:
        """Its patches, its place in the tree, its settings."""
        config, split, node = self.trial.config, self.trial.split, self.node
        stage = determining(replace(config.stage, **_LATER))
        return {
            "data": self.trial.store.content_hash,
            "train": rows_hash(split.train),
            "val": rows_hash(split.val),
            "node": {
                "name": node.name,
                # in this order
                "groups": [[name, *members] for name, members in node.targets.items()],
                "window": [str(v) for v in node.window],
            },
            "unlabelled": rows_hash(split.unlabelled) if stage["pseudo_rounds"] else None,
            "generated": self.generated.content_hash if self.generated else None,
            "mix": _mixed(config.mix, self.generated is not None),
            "stage": stage,
            **{k: v for k, v in self.trial.outside.items() if k in ("weights", "module")},
            "size": config.data.patch_size,
            "augment": config.data.augment,
            "pixels": config.data.pixels,
            "seed": config.seed,
            **determining(config.trainer),
        }

    def make(self, folder: Path) -> None:
        """Trains it in cycles until validation no longer gains, then in the phases that its settings add."""
        stage, module, pseudo = self.trial.config.stage, None, None
        curve: list[dict[str, float]] = []
        cycles: list[dict[str, Any]] = []
        # a cycle sees whole batches: a shorter one would leave nothing to the next
        first = max(stage.first_images, stage.batch_size)
        ends, seen = cycle_ends(first, most_images(stage)), 0
        for i, end in enumerate(ends):
            phase = Phase(f"cycle-{i + 1}", end - seen, stage.sampler)
            title = f"cycle {i + 1} of at most {len(ends)}"
            data, module, known = self._train(phase, i, module, folder / phase.name, title)
            curve += [{**point, "images": seen + point["images"]} for point in known["curve"]]
            seen += known["images"]
            cycles.append({"images": seen, **known["validation"]})
            losses = [cycle.get("loss") for cycle in cycles]
            if not goes_on(losses, stage.gain):
                break
        kept = best(losses)
        if kept < i:
            file = folder / f"cycle-{kept + 1}" / _WEIGHTS
            module = load_stage(file, own_module(stage.network))
        for i, phase in enumerate(later_phases(stage, cycles[kept]["images"]), start=len(ends)):
            assert module is not None
            if phase.pseudo:
                pseudo = _pseudo_labels(self.trial, module)
            data, module, known = self._train(
                phase, i, module, folder / phase.name, phase.name, pseudo
            )
            curve += [{**point, "images": seen + point["images"]} for point in known["curve"]]
            seen += known["images"]
        assert module is not None
        Ranks().wait()  # the kept cycle is read on all of them before it is cleared away
        if not first_rank():
            return
        save_weights(module, folder / "stage.ckpt")
        for place in folder.iterdir():
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
        about = {
            "node": self.node.name,
            "groups": list(self.node.targets),
            "images": seen,
            "cycles": cycles,
            "kept": kept,
            "capped": len(cycles) == len(ends) and gained(losses, stage.gain),
            "train": {g: list(n) for g, n in data.counts.items()},
            "pseudo": 0 if pseudo is None else len(pseudo[0]),
            "curve": curve,
        }
        (folder / "stage.json").write_text(json.dumps(finite(about)) + "\n", encoding="utf-8")

    def _data(
        self, phase: Phase, i: int, pseudo: tuple[np.ndarray, np.ndarray] | None
    ) -> PatchDataModule:
        config = self.trial.config
        return PatchDataModule(
            self.trial.store,
            self.trial.split,
            self.node.scope,
            generated=self.generated,
            pseudo=pseudo,
            mix=config.mix,
            images=phase.images,
            sampler=phase.sampler,
            batch_size=config.stage.batch_size,
            augment=config.data.augment,
            pixels=config.data.pixels,
            workers=config.data.workers,
            patch_size=config.data.patch_size,
            min_class_patches=config.data.min_class_patches,
            seed=config.seed + 100_003 * i,  # the order of batches, another one in each phase
        )

    def _train(
        self,
        phase: Phase,
        i: int,
        before: StageModule | None,
        place: Path,
        title: str,
        pseudo: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> tuple[PatchDataModule, StageModule, dict[str, Any]]:
        """Data, module after a phase, and what is known of it; a killed run goes on behind a finished one."""
        title = f"stage {self.node.name}, {title}"
        data = self._data(phase, i, pseudo)
        finished = _finished(place, title, self.trial.config.stage.network)
        if finished is not None:
            return data, *finished
        module = self._module(phase, i, data, before)
        trial = self.trial
        fit(module, data, trial.config.trainer, place, title, phase.images, trial.wandb_run)
        if finishes(trial.config.mix):
            module.measure_statistics(data.real_batches(module.device))
        known = {
            "images": module.images_seen,
            "curve": module.curve,
            "validation": _validation(module, data),
        }
        if first_rank():
            write_whole(place / _KNOWN, json.dumps(finite(known)))
            save_weights(module, place / _WEIGHTS)
        return data, module, known

    def _module(
        self, phase: Phase, i: int, data: PatchDataModule, before: StageModule | None
    ) -> StageModule:
        seed, targets = self.trial.config.seed, self.node.targets
        counts = data.class_counts
        torch.manual_seed(seed + i)
        plan = {**asdict(self.trial.config.stage), **_LATER, "images": phase.images}
        allow = own_module(plan["network"])
        module = StageModule(
            plan, self.node.name, targets, counts, data.size, seed, data.channels, allow
        )
        if before is None and plan["weights"]:
            start_from(module.network, plan["network"], plan["weights"], len(targets))
        if before is not None:
            module.load_state_dict(before.state_dict())
        if phase.head:
            module.retrain_head(phase.images, seed)
        return module


def finishes(mix: MixConfig) -> bool:
    """Whether every cycle ends on real patches alone, with the statistics of these."""
    return mix.recipe == "share" and mix.finish > 0


def _mixed(mix: MixConfig, generated: bool) -> dict[str, Any] | None:
    """What of the mix makes another stage: nothing where no place is filled and no cycle has a finish.

    A dose of 0 is then the very artifact of the method without generated patches.
    """
    filled = mix.recipe != "real" and not (mix.recipe == "share" and mix.amount == 0)
    if generated or (filled and mix.source == "repeated"):
        return determining(mix)
    return {"recipe": mix.recipe, "finish": mix.finish} if finishes(mix) else None


def open_stage(folder: Path, network: str) -> tuple[StageModule, dict[str, Any]]:
    """The stage in the folder of a `TrainedStage`, and what is known of its training.

    Args:
        folder: of the artifact.
        network: `stage.network` of the settings: where it is the user's own, it may be imported.
    """
    about = form.read_json(folder / "stage.json", STAGE, f"delete {folder} and run again")
    return load_stage(folder / "stage.ckpt", own_module(network)), about


def _validation(module: StageModule, data: PatchDataModule) -> dict[str, float]:
    """Loss (see `refined_loss`) and macro scores after a phase, the same on all ranks; empty without patches."""
    pixels, labels = data.bank["val"].numpy(), data.labels["val"].numpy()
    found = {}
    if len(labels):
        p = module.probabilities(pixels)
        names = np.array(module.groups)
        told = scores(names[labels], names[p.argmax(1)], module.groups)
        found = {"loss": refined_loss(p, labels), "tpr": told["macro/tpr"], "f1": told["macro/f1"]}
    shared: dict[str, float] = json.loads(Ranks().share(json.dumps(found)) or "{}")
    return shared


def _finished(place: Path, title: str, network: str) -> tuple[StageModule, dict[str, Any]] | None:
    """A phase that an earlier run finished and what is known of it, the same on all ranks; None: it is to do."""
    ranks, file = Ranks(), place / _WEIGHTS
    text = None
    if ranks.first and file.is_file():
        try:
            read_whole(file)
            about = form.read_json(place / _KNOWN, PHASE, f"delete {place}")
            text = json.dumps(about)
        except (OSError, ValueError, UserError) as error:
            print(printable(f"{file}: broken ({error}); {title} begins again"), file=sys.stderr)
            file.unlink()
    text = ranks.share(text)
    return None if text is None else (load_stage(file, own_module(network)), json.loads(text))


@dataclass(frozen=True)
class Phase:
    """A part of a stage's training.

    Attributes:
        name: of its folder.
        images: budget.
        sampler: shuffle or balanced.
        head: a new last layer alone is trained (cRT).
        pseudo: unlabelled patches join, with what the network so far says of them.
    """

    name: str
    images: int
    sampler: str
    head: bool = False
    pseudo: bool = False


def most_images(stage: StageConfig) -> int:
    """The most that the cycles before all other phases may see, so that the stage stays within its budget."""
    return round((1 - stage.retrain_head) * stage.images / (stage.pseudo_rounds + 1))


def later_phases(stage: StageConfig, images: int) -> list[Phase]:
    """What follows the cycles: pseudo-labelled rounds, then a new head.

    Args:
        stage: its settings.
        images: that the network of the cycles has learned from; a round is as long, and the head has its share of all.
    """
    rounds, share = stage.pseudo_rounds, stage.retrain_head
    parts = [Phase(f"round-{i + 1}", images, stage.sampler, pseudo=True) for i in range(rounds)]
    head = round(share / (1 - share) * images * (rounds + 1))
    return parts + ([Phase("head", head, "balanced", head=True)] if head else [])


def _pseudo_labels(trial: Trial, module: StageModule) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unlabelled patches and what the network so far calls them, to balance the classes.

    The same on all ranks, whose networks differ in the statistics of their last batch.
    """
    p = module.cpu().probabilities(trial.unlabelled.pixels)
    real = trial.train.counts  # without a tree, groups are classes
    chosen, called = pseudo_balance(
        p, [real[c] for c in module.groups], trial.config.stage.pseudo_confidence
    )
    told = Ranks().share(json.dumps([trial.split.unlabelled[chosen].tolist(), called.tolist()]))
    rows, labels = json.loads(told or "[[], []]")
    return np.array(rows, np.int64), np.array(labels, np.int64)
