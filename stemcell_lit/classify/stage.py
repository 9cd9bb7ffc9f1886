"""StageModule: one node of the hierarchy, a small classifier between its groups."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F

from stemcell_lit.classify import networks
from stemcell_lit.data.augment import to_float
from stemcell_lit.errors import UserError
from stemcell_lit.evaluate.metrics import stage_metrics


def focal_loss(logits: torch.Tensor, target: torch.Tensor, gamma: float) -> torch.Tensor:
    """Mean of -(1 - p)^gamma log p of the true target (Lin et al. 2017, Focal loss, without alpha).

    Args:
        logits: (batch, groups).
        target: (batch,) int64.
        gamma: 0 is cross-entropy.
    """
    log_p = F.log_softmax(logits, 1).gather(1, target[:, None]).squeeze(1)
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


def class_weights(counts: Sequence[int]) -> torch.Tensor:
    """(groups,) weights total / (groups x count): each group weighs the same as a whole, the mean weight is 1."""
    n = torch.tensor(counts, dtype=torch.float32)
    return n.sum() / (len(n) * n)


class StageModule(pl.LightningModule):
    """Trains one classifier on a view's targets.

    The budget counts images seen over all ranks; the learning rate follows a short warm-up, then a half cosine of
    the budget. Its checkpoint holds plain values alone, so `load_from_checkpoint(..., weights_only=True)` works.

    Args:
        stage: the fields of `schema.StageConfig` as a plain dict.
        node: its place in the tree, such as `root/cells`.
        groups: target name -> its classes.
        counts: training patches per target, real and generated; for weighted and logit-adjusted losses.
        image_size: height and width in pixels.
        seed: of the first weights.
        channels: views of a patch: the scales of its store.
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
        least = networks.LEAST_SIZE.get(stage["network"], 1)
        if image_size < least:
            raise UserError(
                f"stage.network={stage['network']}: patches of {image_size} px, expected {least} or more; give "
                "a larger data.patch_size, or stage.network=small"
            )
        self.stage, self.node, self.groups = dict(stage), node, list(groups)
        self.network = networks.build(
            stage["network"], len(groups), stage["width"], stage["dropout"], seed, channels
        )
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
        self.curve: list[dict[str, float]] = []
        self._loss_sum: torch.Tensor | float = 0.0
        self._loss_n = 0
        self._rng: torch.Tensor | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits (batch, groups) of float patches (batch, channels, size, size) in -1 to 1."""
        return self.network(pixels)

    def loss(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss by name.

        `logit_adjusted` adds the log prior of the training targets while training only (Menon et al. 2021), so that
        the bare logits are those of balanced classes.
        """
        logits = logits.float()
        kind, smoothing = self.stage["loss"], self.stage["label_smoothing"]
        if kind == "plain":
            return F.cross_entropy(logits, target, label_smoothing=smoothing)
        if kind == "weighted":
            return F.cross_entropy(logits, target, weight=self.weights, label_smoothing=smoothing)
        if kind == "focal":
            return focal_loss(logits, target, self.stage["focal_gamma"])
        if kind == "logit_adjusted":
            return F.cross_entropy(logits + self.log_prior, target, label_smoothing=smoothing)
        raise UserError(f"stage.loss={kind}: expected plain, weighted, focal or logit_adjusted")

    def learning_rate(self, progress: float) -> float:
        """Learning rate at a share of the budget, 0 to 1: 5 % warm-up, then a half cosine to zero."""
        if progress < 0.05:
            return self.stage["lr"] * (0.1 + 0.9 * progress / 0.05)
        return self.stage["lr"] * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - 0.05) / 0.95)))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW, or the paper's SGD with momentum; normalisation weights and biases are not decayed."""
        decay = [p for p in self.parameters() if p.ndim > 1]
        plain = [p for p in self.parameters() if p.ndim <= 1]
        params = [
            {"params": decay, "weight_decay": self.stage["weight_decay"]},
            {"params": plain, "weight_decay": 0.0},
        ]
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
            group["lr"] = rate
        return None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        """One step on a mixed batch."""
        loss = self.loss(self(batch["pixels"]), batch["label"])
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

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the curve and the random state, which dropout draws from."""
        checkpoint["curve"] = self.curve
        checkpoint["images_seen"] = self.images_seen
        checkpoint["loss_state"] = [float(self._loss_sum), self._loss_n]
        checkpoint["torch_rng"] = torch.get_rng_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes them up again."""
        self.curve, self.images_seen = checkpoint["curve"], checkpoint["images_seen"]
        self._loss_sum, self._loss_n = checkpoint["loss_state"]
        self._rng = checkpoint["torch_rng"]

    def on_train_start(self) -> None:
        """Sets the random state of a resumed run."""
        if self._rng is not None:
            torch.set_rng_state(self._rng.cpu())
            self._rng = None

    @torch.inference_mode()
    def probabilities(self, pixels: np.ndarray, batch_size: int = 512) -> np.ndarray:
        """Softmax probabilities of patches.

        Args:
            pixels: uint8 (patches, [scales,] size, size), already at the trained size.
            batch_size: patches at once.

        Returns:
            float32 (patches, groups).
        """
        training = self.training
        self.eval()
        parts = [
            F.softmax(
                self(to_float(torch.from_numpy(np.array(chunk)).to(self.device))).float(),
                1,
            ).cpu()
            for chunk in (pixels[i : i + batch_size] for i in range(0, len(pixels), batch_size))
        ]
        self.train(training)
        return torch.cat(parts).numpy() if parts else np.empty((0, len(self.groups)), np.float32)
