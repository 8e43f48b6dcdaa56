"""The configuration: what it accepts, and its sentences."""

import dataclasses
import json

import harness
import pytest

from nextham.model import NextHAMConfig


def test_published_is_the_default():
    assert NextHAMConfig() == NextHAMConfig.published_v1()
    config = NextHAMConfig()
    assert config.hidden_irreps.dim == 392
    assert config.harmonics_irreps.dim == 36
    assert config.block_irreps.dim == 5832
    assert config.n_scalars == 32
    assert config.floor == 0.0


def test_later_variant():
    config = NextHAMConfig.published_v2()
    assert config.hidden_irreps.lmax == 7 and config.tracegrad_residual == 0


@pytest.mark.parametrize("config", [NextHAMConfig(), NextHAMConfig(spinor=False, target="scalar", norm="floor")])
def test_dictionary_and_json(config):
    assert NextHAMConfig.from_dict(config.to_dict()) == config
    assert NextHAMConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"hidden": "nonsense"}, "hidden: expected irreps such as 8x0e+4x1o, got 'nonsense'"),
        ({"hidden": "2x0e+1x1o+3x0e"}, "hidden: expected each irrep once, got 2x0e+1x1o+3x0e"),
        ({"hidden": "1x1o+2x0e"}, "hidden: expected the 0e channels first, got 1x1o+2x0e"),
        ({"hidden": ""}, "hidden: expected the 0e channels first, got "),
        ({"n_layers": 0}, "n_layers: expected at least 1, got 0"),
        ({"n_heads": 1.5}, "n_heads: expected something like 4, got 1.5"),
        ({"n_radial": 1}, "n_radial: expected at least 2, got 1"),
        ({"radial_widths": ()}, "radial_widths: expected positive widths, got ()"),
        ({"trace_widths": (5, 0)}, "trace_widths: expected positive widths, got (5, 0)"),
        ({"cutoff": 0.0}, "cutoff: expected a positive distance in Å, got 0.0"),
        ({"decay": -1.0}, "decay: expected 0 or a positive number, got -1.0"),
        ({"l_max": 12}, "l_max: expected 0 to 11, got 12"),
        ({"shells": ()}, "shells: expected at least one l >= 0, got ()"),
        ({"ranges": ()}, "ranges: expected pairs lo < hi in Å, got ()"),
        ({"ranges": ((0.0, 1.0), (0.5, 2.0))}, "ranges: expected ascending ranges that do not overlap"),
        ({"ranges": ((2.0, 1.0),)}, "ranges: expected pairs lo < hi in Å"),
        ({"ranges": ((0.0, 9.0),)}, "from 0 to the cutoff 8.0 Å"),
        ({"ranges": (1.0, 2.0)}, "ranges: expected something like"),
        ({"target": "dd"}, "target: expected one of uu, scalar, scalar+vector, got 'dd'"),
        ({"spinor": False}, "target: expected 'scalar' without spin, got 'uu'"),
        ({"spinor": 1}, "spinor: expected something like True, got 1"),
        ({"norm": "none"}, "norm: expected one of published, floor, got 'none'"),
        ({"norm_floor": float("nan")}, "norm_floor: expected 0 or a positive number, got nan"),
    ],
)
def test_sentences(changes, sentence):
    with harness.raises(ValueError, sentence):
        dataclasses.replace(NextHAMConfig(), **changes)


def test_dictionary_sentences():
    values = NextHAMConfig().to_dict()
    with harness.raises(ValueError, "config: unknown setting 'colour'"):
        NextHAMConfig.from_dict({**values, "colour": "red"})
    del values["decay"]
    with harness.raises(ValueError, "config: setting 'decay' is missing"):
        NextHAMConfig.from_dict(values)
