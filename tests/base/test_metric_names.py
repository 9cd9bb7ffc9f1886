"""A metric's name says which encoder measured it, and comes back from its text."""

import pytest

from stemcell_lit.base.metric_names import MetricName


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("kid/encoder=3fa2c1", MetricName("kid", "3fa2c1")),
        ("sqrt(kid)_train/encoder=3fa2c1+77", MetricName("sqrt(kid)_train", "3fa2c1+77")),
        ("entropy/intersection", MetricName("entropy/intersection")),
        ("last", MetricName("last")),
    ],
)
def test_a_metric_is_its_text_and_back(text, name):
    assert MetricName.parse(text) == name and str(name) == text
