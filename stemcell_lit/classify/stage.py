"""StageModule: one node of the hierarchy, a small classifier between its groups."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch.distributions import Beta

from stemcell_lit.base import formats as form
from stemcell_lit.base.weights import build, read_tensors, tensors
from stemcell_lit.classify import networks
from stemcell_lit.data.augment import to_float, turn_square
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import stage_metrics
from stemcell_lit.patches.store import reduce_pixels
from stemcell_lit.settings.group_keys import StageConfig

# Bounds of what a file may ask for: they are far above what anybody trains
_SETTINGS = form.record(
    {
        "stage": form.settings(
            asdict(StageConfig()),
            {
                "width": form.whole(1, 4096),
                "members": form.whole(1, 1024),
                "weights": form.maybe(form.text()),
            },
        ),
        "node": form.text(),
        "groups": form.mapping(form.listing(form.NAME, least=1), most=form.MOST_CLASSES),
        "counts": form.listing(form.whole(), most=form.MOST_CLASSES),
        "image_size": form.whole(1, 65_536),
        "seed": form.whole(),
        "channels": form.whole(1, 64),
    },
    more=False,
)
_SAVED = {"hyper_parameters": _SETTINGS, "state_dict": tensors}


def focal_loss(
    logits: torch.Tensor, target: torch.Tensor, gamma: float, reduction: str = "mean"
) -> torch.Tensor:
    """Mean of -(1 - p)^gamma log p of the true target (Lin et al. 2017, Focal loss, without alpha).

    Args:
        logits: (batch, groups).
        target: (batch,) int64.
        gamma: 0 is cross-entropy.
        reduction: mean, or none: then a value a patch.
    """
    log_p = F.log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1)
    terms = -((1 - log_p.exp()) ** gamma) * log_p
    return terms.mean() if reduction == "mean" else terms


def class_weights(counts: Sequence[int]) -> torch.Tensor:
    """(groups,) weights total / (groups x count): each group weighs the same as a whole, the mean weight is 1."""
    n = torch.tensor(counts, dtype=torch.float32)
    return n.sum() / (len(n) * n)


class StageModule(pl.LightningModule):
    """Trains one classifier on a scope's targets.

    The budget counts images seen over all ranks; the learning rate follows a short warm-up, then a half cosine of
    the budget, or the paper's step. Its checkpoint holds plain values alone, so
    `load_from_checkpoint(..., weights_only=True)` works.

    Args:
        stage: the fields of `StageConfig` as a plain dict.
        node: its place in the tree, such as `root/cells`.
        groups: target name -> its classes.
        counts: training patches per target, real and generated; for weighted and logit-adjusted losses.
        image_size: height and width in pixels.
        seed: of the first weights.
        channels: views of a patch: the scales of its store.
        allow_module: a network of the user's own that may be imported, see `networks.maker`; kept in no file.
    """

    def __init__(
        self,
        stage: dict[str, Any],
        node: str,
        groups: Mapping[str, Sequence[str]],
        counts: Sequence[int],
        image_size: int,
        seed: int = 0,
        channels: int = 1,
        allow_module: str | None = None,
    ):
        super().__init__()
        groups = {name: list(members) for name, members in groups.items()}
        counts = [int(n) for n in counts]
        self.save_hyperparameters(
            {
                "stage": dict(stage),
                "node": node,
                "groups": groups,
                "counts": counts,
                "image_size": image_size,
                "seed": seed,
                "channels": channels,
            }
        )
        self.stage, self.node = {**asdict(StageConfig()), **stage}, node
        self.groups = list(groups)
        self.image_size, self.channels = image_size, channels
        name = self.stage["network"]
        self.network = networks.build(
            name,
            len(groups),
            self.stage["width"],
            self.stage["dropout"],
            seed,
            self.stage["members"],
            channels,
            allow_module,
        )
        if next(self.network.parameters()).device.type != "meta":  # there sizes alone are asked for
            networks.check_size(self.network, name, len(groups), channels, image_size)
        networks.freeze(self.network, self.stage["freeze"], len(groups))
        self.head_only = False
        self.images_seen = (
            0  # a plain number: reading a tensor would make every step wait for the GPU
        )
        self.weights: torch.Tensor
        self.log_prior: torch.Tensor
        self.register_buffer("weights", class_weights(counts), persistent=False)
        prior = torch.tensor(counts, dtype=torch.float32)
        self.register_buffer("log_prior", (prior / prior.sum()).log(), persistent=False)
        metrics = stage_metrics(self.groups)
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")
        self.train()  # Lightning takes the modes as they are
        self.curve: list[dict[str, float]] = []
        self._loss_sum: torch.Tensor | float = 0.0
        self._loss_n = 0

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (batch, groups) of float patches (batch, channels, size, size) in -1 to 1."""
        logits: torch.Tensor = self.network(pixels)
        return logits

    def retrain_head(self, images: int, seed: int) -> None:
        """Begins the second part of cRT: a new last layer alone, the features as they are (Kang et al. 2020).

        Args:
            images: budget of this part; the count of images seen starts at 0.
            seed: of the new layer's weights.
        """
        self.head_only, self.images_seen = True, 0
        self.stage["images"] = images
        self.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for head in networks.heads(self.network, len(self.groups)):
                head.reset_parameters()
                head.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> StageModule:
        """Training mode; while the head alone is trained, statistics and dropout of the features stay fixed.

        So do the statistics of frozen parts.
        """
        super().train(mode and not self.head_only)
        self.training = mode
        for layer in self.network.modules():
            own = list(layer.parameters(recurse=False))
            if own and not any(p.requires_grad for p in own):
                layer.training = False
        return self

    @torch.no_grad()
    def measure_statistics(self, batches: Iterable[torch.Tensor]) -> None:
        """Measures the statistics of its batch normalisation anew, as the mean over batches; weights stay.

        Statistics of frozen parts stay, too.

        Args:
            batches: float (batch, channels, size, size), range -1 to 1.
        """
        kept = self.training
        self.train()
        layers = [
            m
            for m in self.network.modules()
            if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) and m.training
        ]
        self.network.eval()  # nothing is dropped
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean
            layer.train()
        for pixels in batches if layers else ():
            self.network(pixels)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        self.train(kept)

    def loss(
        self, logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The loss by name.

        `logit_adjusted` adds the log prior of the training targets while training only (Menon et al. 2021), so that
        the bare logits are those of balanced classes. At tau 1 that is balanced softmax (Ren et al. 2020).

        Args:
            logits: (batch, groups), or (members, batch, groups): then the members' mean.
            target: (batch,) positions.
            weight: (batch,) what each patch's term is multiplied by; None: 1.

        Raises:
            UserError: no loss of that name.
        """
        if logits.ndim == 3:
            return torch.stack([self.loss(each, target, weight) for each in logits]).mean()
        logits = logits.float()
        kind, smoothing = self.stage["loss"], self.stage["label_smoothing"]
        how = "mean" if weight is None else "none"
        entropy = partial(F.cross_entropy, label_smoothing=smoothing, reduction=how)
        if kind == "plain":
            found = entropy(logits, target)
        elif kind == "weighted":
            found = entropy(logits, target, self.weights)
            if weight is not None:
                found = found / self.weights[target].mean()  # as the mean does
        elif kind == "focal":
            found = focal_loss(logits, target, self.stage["focal_gamma"], how)
        elif kind == "logit_adjusted":
            shifted = logits + self.stage["tau"] * self.log_prior
            found = entropy(shifted, target)
        else:
            raise UserError(f"stage.loss={kind}: expected plain, weighted, focal or logit_adjusted")
        return found if weight is None else (weight * found).mean()

    def learning_rate(self, progress: float) -> float:
        """Learning rate at a share of the budget, 0 to 1.

        `cosine`: 5 % warm-up, then a half cosine to zero. `step`: a tenth from half the budget on.

        Raises:
            UserError: no schedule of that name.
        """
        lr = float(self.stage["lr"])
        if self.stage["schedule"] == "step":
            return lr * (0.1 if progress >= 0.5 else 1.0)
        if self.stage["schedule"] != "cosine":
            raise UserError(f"stage.schedule={self.stage['schedule']}: expected cosine or step")
        if progress < 0.05:
            return lr * (0.1 + 0.9 * progress / 0.05)
        return lr * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.05) / 0.95)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, or the paper's SGD with momentum; normalisation weights and biases are not decayed.

        With `layer_decay` each part of the network has groups of its own, whose `scale` the rate is multiplied by.
        """
        params = networks.rate_groups(
            self.network, self.stage["weight_decay"], self.stage["layer_decay"], len(self.groups)
        )
        if self.stage["optimizer"] == "adamw":
            return torch.optim.AdamW(params, lr=self.stage["lr"])
        if self.stage["optimizer"] == "sgd":
            return torch.optim.SGD(params, lr=self.stage["lr"], momentum=0.9)
        raise UserError(f"stage.optimizer={self.stage['optimizer']}: expected adamw or sgd")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        """Sets the learning rate; ends the training where the budget is spent."""
        if self.images_seen >= self.stage["images"]:
            self.trainer.should_stop = True
            return -1
        rate = self.learning_rate(self.images_seen / self.stage["images"])
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate * group.get("scale", 1.0)
        # Dropout draws from torch's own state: a resumed run repeats the draws, on every rank its own.
        key = [self.hparams["seed"], self.global_rank, self.images_seen]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))
        return None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One step on a mixed batch."""
        pixels, label, weight = batch["pixels"], batch["label"], batch.get("weight")
        network = self.network
        answer = network.each if isinstance(network, networks.NetworkEnsemble) else network
        if self.stage["mixup"] > 0:
            # Zhang et al. 2018; drawn on the CPU from the state that checkpoints keep
            lam = float(Beta(self.stage["mixup"], self.stage["mixup"]).sample())
            other = torch.randperm(len(label)).to(label.device)
            logits = answer(lam * pixels + (1 - lam) * pixels[other])
            turned = None if weight is None else weight[other]
            loss: torch.Tensor = lam * self.loss(logits, label, weight) + (1 - lam) * self.loss(
                logits, label[other], turned
            )
        else:
            loss = self.loss(answer(pixels), label, weight)
        # DDP takes the plain mean over ranks; one with a patch more than another counts for more.
        loss = loss * (len(batch["label"]) * self.trainer.world_size / batch["images"])
        self.images_seen += batch["images"]
        self._loss_sum = self._loss_sum + loss.detach()
        self._loss_n += 1
        if self.images_seen >= self.stage["images"]:
            self.trainer.should_stop = True
        return loss

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collects held-out real patches."""
        self.val_metrics.update(self(batch["pixels"]).float().argmax(1), batch["label"])

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics and keeps a point of the training curve."""
        scores = {name: float(value) for name, value in self.val_metrics.compute().items()}
        self.val_metrics.reset()
        self.log_dict(scores, sync_dist=False)
        if not self.trainer.sanity_checking:
            loss = float(self._loss_sum) / max(1, self._loss_n)
            self._loss_sum, self._loss_n = 0.0, 0
            self.log("train/loss", loss)
            self.curve.append({"images": self.images_seen, "loss": loss, **scores})

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collects real patches of held-out groups."""
        self.test_metrics.update(self(batch["pixels"]).float().argmax(1), batch["label"])

    def on_test_epoch_end(self) -> None:
        """Logs macro and per-target TPR and F1 as `test/...`."""
        self.log_dict({k: float(v) for k, v in self.test_metrics.compute().items()})
        self.test_metrics.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the counter, from which every random choice follows, and the curve."""
        checkpoint["curve"] = self.curve
        checkpoint["images_seen"] = self.images_seen
        checkpoint["loss_state"] = [float(self._loss_sum), self._loss_n]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up again."""
        self.curve, self.images_seen = checkpoint["curve"], checkpoint["images_seen"]
        self._loss_sum, self._loss_n = checkpoint["loss_state"]

    @torch.inference_mode()
    def probabilities(
        self, pixels: np.ndarray, batch_size: int = 512, *, turns: bool | None = None
    ) -> np.ndarray:
        """Softmax probabilities of patches, with `turns` the mean over the eight symmetries of the square.

        Args:
            pixels: uint8 (patches, [scales,] size, size), reduced to the trained size.
            batch_size: patches at once.
            turns: None: as `stage.turns` says.

        Returns:
            float32 (patches, groups).
        """
        pixels = reduce_pixels(pixels, self.image_size)
        training = self.training
        self.eval()
        sides = range(8 if (self.stage["turns"] if turns is None else turns) else 1)
        parts = []
        for start in range(0, len(pixels), batch_size):
            chunk = np.array(pixels[start : start + batch_size])
            images = to_float(torch.from_numpy(chunk).to(self.device))
            which = torch.zeros(len(chunk), dtype=torch.int64, device=self.device)
            p = [F.softmax(self(turn_square(images, which + side)).float(), 1) for side in sides]
            parts.append(torch.stack(p).mean(0).cpu())
        self.train(training)
        return torch.cat(parts).numpy() if parts else np.empty((0, len(self.groups)), np.float32)


def read_stage(
    file: Path,
    remedy: str,
    what: str = "stage",
    beside: Mapping[str, form.Form] | None = None,
    allow_module: str | None = None,
) -> tuple[StageModule, dict[str, Any]]:
    """A stage from its plain settings and weights, in evaluation mode, and the whole content of the file.

    Args:
        file: of `trained.save_weights`, or of an encoder.
        remedy: what to do where it cannot be read.
        what: it is, for the sentence.
        beside: what else the file must hold, name -> form.
        allow_module: a network of the user's own that the file may ask for.

    Raises:
        UserError: missing, unreadable, or not of this form.
    """
    content = read_tensors(file, form.record({**_SAVED, **(beside or {})}), what, remedy)
    settings, weights = content["hyper_parameters"], content["state_dict"]
    try:
        # before anything is built: what the user may do about it is another thing than for a broken file
        networks.maker(settings["stage"].get("network", "small"), allow_module)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    stage = build(
        lambda: StageModule(**settings, allow_module=allow_module), weights, file, what, remedy
    )
    return stage.eval(), content
