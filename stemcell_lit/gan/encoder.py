"""The encoder that judges generators: a small classifier of the training patches, its features before the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from stemcell_lit.base import formats as form
from stemcell_lit.base.checkpoints import save_whole
from stemcell_lit.base.weights import tensors
from stemcell_lit.classify.stage import StageModule, read_stage
from stemcell_lit.data.augment import POLICIES, augment_batch, to_float
from stemcell_lit.data.mixing import QuotaSampler
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.entropy import entropy
from stemcell_lit.settings.group_keys import StageConfig

FILE = "encoder.pt"
_MOST = 2_000  # training patches of a class whose features are kept, for the filters
_BATCH = 512


def train_classifier(
    pixels: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[str],
    stage: Mapping[str, Any],
    *,
    seed: int,
    sampler: str = "balanced",
    augment: str = "turns",
    accelerator: str = "cpu",
) -> StageModule:
    """Trains the project's classifier on patches in memory, without a trainer: no files, no logs.

    Deterministic given the seed on a CPU and a number of threads; the global random state is left
    as it was.

    Args:
        pixels: uint8 (n, side, side).
        labels: (n,) int64, positions in `classes`. A class may be absent.
        classes: targets.
        stage: a `StageConfig` as a mapping; `images` is the budget.
        seed: of the first weights, the order, dropout and augmentation.
        sampler: `balanced` (every class present equally often) or `shuffle` (as they are).
        augment: a policy of `augment.POLICIES`.
        accelerator: cpu, or else a GPU is used where there is one.

    Returns:
        The module in evaluation mode, on the CPU.
    """
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    strata = [np.flatnonzero(labels == i) for i in range(len(classes))]
    sizes = [len(s) for s in strata]
    most = max(sizes)
    quotas = [most if n else 0 for n in sizes] if sampler == "balanced" else sizes
    batches = QuotaSampler(strata, quotas, stage["batch_size"], seed=seed)
    module = StageModule(
        dict(stage),
        "root",
        {c: [c] for c in classes},
        [max(1, n) for n in sizes],
        pixels.shape[1],
        seed,
    ).to(device)
    (bank, target) = (torch.from_numpy(np.array(a)).to(device) for a in (pixels, labels))
    optimizer = module.configure_optimizers()
    draw = torch.Generator().manual_seed(seed)
    seen = epoch = 0
    module.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # of dropout
        while seen < stage["images"]:
            batches.set_epoch(epoch)
            epoch += 1
            for rows in batches:
                if seen >= stage["images"]:
                    break
                for group in optimizer.param_groups:
                    group["lr"] = module.learning_rate(seen / stage["images"])
                index = torch.as_tensor(rows, device=device)
                batch = augment_batch(to_float(bank[index]), POLICIES[augment], draw)
                loss = module.loss(module(batch), target[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                seen += len(rows)
    module.images_seen = seen
    return module.eval().cpu()


def _training_form(value: Any, where: str) -> None:
    form.record(dict.fromkeys(("features", "label", "entropy"), form.present), more=False)(
        value, where
    )
    tensors(value, where)


def _shift_form(value: Any, where: str) -> None:
    tensors({"shift": value}, where)


_BESIDE = {
    "name": form.text(64),
    "shift": _shift_form,
    "scale": form.number(0, above=True),
    "training": _training_form,
}


class Encoder:
    """Features and class probabilities of patches, by a classifier of the training patches.

    Features are those before the last layer, shifted and scaled by one number, such that over the
    training patches their mean is 0 and their mean variance 1: distances then have a unit.

    Attributes:
        module: the classifier.
        name: the first six hex digits of its artifact's hash; stands in the names of metrics.
        classes: class names in their fixed order.
        training: of at most 2,000 training patches a class: `features` (n, d), `label` (n,),
            `entropy` (n,) in bits.
    """

    def __init__(
        self,
        module: StageModule,
        name: str,
        shift: torch.Tensor,
        scale: float,
        training: Mapping[str, np.ndarray],
    ):
        self.module, self.name, self.training = module.eval().requires_grad_(False), name, training
        self.classes = list(module.groups)
        self._shift, self._scale = shift, scale

    @classmethod
    def fit(
        cls,
        pixels: np.ndarray,
        labels: np.ndarray,
        classes: Sequence[str],
        *,
        images: int,
        name: str = "",
        seed: int = 0,
        stage: Mapping[str, Any] | None = None,
        accelerator: str = "cpu",
    ) -> Encoder:
        """Trains one on training patches alone, every class equally often; arguments as of `train_classifier`.

        `images` is the budget in place of the stage's; `stage` None: the defaults of `StageConfig`.
        """
        settings = {**(stage or asdict(StageConfig())), "images": images}
        module = train_classifier(
            pixels, labels, classes, settings, seed=seed, accelerator=accelerator
        )
        encoder = cls(module, name, torch.zeros(()), 1.0, {})
        random = np.random.default_rng(seed)
        of_class = (np.flatnonzero(labels == i) for i in range(len(classes)))
        kept = np.sort(np.concatenate([random.permutation(rows)[:_MOST] for rows in of_class]))
        features = encoder.features(pixels[kept])
        encoder._shift = torch.from_numpy(features.mean(0))
        encoder._scale = float(1 / max(float(np.sqrt(features.var(0).mean())), 1e-6))
        encoder.training = {
            "features": (features - features.mean(0)) * np.float32(encoder._scale),
            "label": np.asarray(labels)[kept],
            "entropy": entropy(np.asarray(pixels)[kept]),
        }
        return encoder

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Float32 (n, d) of uint8 patches (n, side, side)."""
        body = self.module.network[:-2]  # type: ignore[index]  # before dropout and the last layer
        parts = [
            (body(to_float(torch.from_numpy(np.array(chunk)))) - self._shift) * self._scale
            for chunk in (pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH))
        ]
        width = self.module.network[-1].in_features  # type: ignore[index]
        return torch.cat(parts).numpy() if parts else np.empty((0, int(width)), np.float32)

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Float32 (n, classes) of uint8 patches (n, side, side): p(class) where all are as likely."""
        return self.module.probabilities(pixels)

    def save(self, file: Path) -> None:
        """Writes everything into one file of plain values and tensors."""
        save_whole(
            {
                "hyper_parameters": dict(self.module.hparams),
                "state_dict": self.module.state_dict(),
                "name": self.name,
                "shift": self._shift,
                "scale": self._scale,
                "training": {k: torch.from_numpy(v) for k, v in self.training.items()},
            },
            file,
        )

    @classmethod
    def load(cls, file: Path) -> Encoder:
        """Reads what `save` wrote.

        Raises:
            UserError: missing or unreadable.
        """
        module, content = read_stage(file, "make it again", "encoder", _BESIDE)
        training = {k: v.numpy().copy() for k, v in content["training"].items()}
        rows = {len(v) for v in training.values()}
        head = list(module.network.children())[-1]
        width = head.in_features if isinstance(head, nn.Linear) else 0
        shift, label = content["shift"], training["label"]
        if (
            len(rows) != 1
            or shift.shape not in ((), (width,))
            or training["features"].shape[1:] != (width,)
            or label.dtype.kind != "i"
            or (len(label) and not 0 <= label.min() <= label.max() < len(module.groups))
        ):
            raise UserError(f"{file}: its training patches do not fit its network; make it again")
        return cls(module, content["name"], shift.clone(), content["scale"], training)
