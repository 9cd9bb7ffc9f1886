"""What a number of a generator is called: by the encoder that measured it, where one did."""

from __future__ import annotations

from dataclasses import dataclass

_ENCODER = "/encoder="


@dataclass(frozen=True)
class MetricName:
    """A metric and its encoder; as text, a key of JSON files, tables and W&B: `kid/encoder=3fa2c1`."""

    metric: str  # such as `kid` or `entropy/intersection`
    # name of the encoder whose features were compared, or several joined by `+`; empty where none was used
    encoder: str = ""

    def __str__(self) -> str:
        return f"{self.metric}{_ENCODER}{self.encoder}" if self.encoder else self.metric

    @classmethod
    def parse(cls, text: str) -> MetricName:
        """The name that this is the text of."""
        metric, _, encoder = text.partition(_ENCODER)
        return cls(metric, encoder)
