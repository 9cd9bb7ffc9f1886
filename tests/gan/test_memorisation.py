"""A generator that is really trained on too few patches, not a scripted one: does the alarm ring?"""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from stemcell_lit.gan.alarms import GANDiverged
from stemcell_lit.gan.best_snapshot import samples
from stemcell_lit.gan.distances import turned
from stemcell_lit.gan.module import GANModule
from stemcell_lit.gan.quality import Reference
from stemcell_lit.settings.gan_keys import QualityConfig
from tests.gan.helpers import SIDE
from tests.gan.test_best_snapshot import Blocks, fit

GRAIN = {"fine": 1.0, "coarse": 1.6}  # px, standard deviation of the blur
CLASSES = list(GRAIN)
BUDGET = 8_000  # images: the alarm rang after 3,200
GAN = {  # small and without augmentation; loss and penalties are the default's
    "latent": 8,
    "embedding": 8,
    "channels": [48, 32, 24],
    "critic_channels": [24, 32, 48],
    "translate": False,
    "lr": 1e-3,
    "critic_lr": 2e-3,
    "ema_halflife_images": 1_000,
    "batch_size": 16,
    "validate_every_images": 800,
    "collapse_below": 0.0,  # only memorisation is to end the training
    "precision": "float32",
}


def rosettes(seed, n):
    """Random texture, made symmetric: a generator is shown all turns, which are the same patch then."""
    random, label = np.random.default_rng(seed), np.arange(n) % len(CLASSES)
    pixels = np.empty((n, SIDE, SIDE))
    for i, grain in enumerate(GRAIN.values()):
        rows = np.flatnonzero(label == i)
        noise = gaussian_filter(random.normal(size=(len(rows), SIDE, SIDE)), (0, grain, grain))
        even = turned(noise).reshape(8, *noise.shape).mean(0)
        even -= even.mean((1, 2), keepdims=True)
        pixels[rows] = 128 + 45 * even / even.std((1, 2), keepdims=True)
    return np.clip(pixels, 0, 255).astype(np.uint8), label


class Drawn:
    """A loader that draws balanced batches from given patches."""

    def __init__(self, pixels, label, count=BUDGET // GAN["batch_size"]):
        self.pixels, self.label, self.count = pixels, label, count

    def __iter__(self):
        random, size = np.random.default_rng(0), GAN["batch_size"]
        pools = [np.flatnonzero(self.label == i) for i in range(len(CLASSES))]
        for _ in range(self.count):
            rows = np.concatenate([random.choice(pool, size // len(pools)) for pool in pools])
            pixels = torch.from_numpy(self.pixels[rows].astype(np.float32)) / 127.5 - 1
            label = torch.from_numpy(self.label[rows])
            yield {"pixels": pixels[:, None], "label": label, "images": size}

    def __len__(self):
        return self.count


def train(out, patches, images):
    """A GAN trained on so many patches, watched with the default alarm."""
    pixels, label = rosettes(1, patches)
    held_out = rosettes(2, 120)
    reference = Reference(CLASSES, pixels, label, *held_out, Blocks())
    module = GANModule({**GAN, "images": images}, CLASSES, SIDE)
    default = QualityConfig()
    watch, error = fit(
        out,
        reference,
        module,
        loaders=(Drawn(pixels, label), Drawn(*held_out, count=2)),
        samples=default.samples,
        memorised_below=default.memorised_below,
        memorised_checks=default.memorised_checks,
    )
    return module, reference, watch, error


def likeness(patches, others):
    """(n, m) correlation of each patch with each of the others."""
    one, other = (x.reshape(len(x), -1).astype(float) for x in (patches, others))
    return np.corrcoef(one, other)[: len(one), len(one) :]


def test_an_over_fitted_generator_is_caught_and_one_of_many_patches_is_not(tmp_path):
    module, reference, watch, error = train(tmp_path / "few", 8, BUDGET)
    assert isinstance(error, GANDiverged)
    assert f"the GAN memorised: after {module.images_seen} images" in str(error)
    assert module.images_seen < BUDGET
    ratios = [c["memorisation_least"] for c in watch.checks]
    assert max(ratios[-2:]) < QualityConfig().memorised_below < ratios[0]

    # By another measure, too, its patches are training patches, and of more than one kind.
    made, kinds = samples(module, 64, CLASSES), set()
    for name, own, real, unseen in zip(
        CLASSES, made, reference.pixels("train"), reference.pixels("held_out"), strict=True
    ):
        alike = likeness(own, real)
        assert (alike.max(1) > 0.9).mean() > 0.5
        assert (likeness(unseen, real).max(1) > 0.9).mean() < 0.1
        kinds |= {(name, i) for i in alike.argmax(1)[alike.max(1) > 0.9]}
    assert len(kinds) > len(CLASSES)

    many, _, control, none = train(tmp_path / "many", 500, int(module.images_seen))
    assert none is None and many.images_seen == module.images_seen
    assert min(c["memorisation_least"] for c in control.checks) > 0.7
