"""VAEs with and without halting variables, trained once, and what they reach beside each other."""

import pytest

from accel.bench import vae_halting
from accel.bench.runner import Settings

pytest.importorskip("sklearn")

SMALL = [
    "fit.steps=6",
    "fit.checkpoint_every=3",
    "fit.lr_factors={}",
    'data={name="digits",batch=32,binarise="dynamic"}',
]
TABLE = 'vae={latent={kind="normal",dim=2},network="residual",hidden=[16],width=4,units=2'


def test_a_decoder_that_decides_beside_one_that_does_not(tmp_path, trained_here):
    every = {"recipe": "vae_halting", "folder": str(tmp_path), "pictures": 20, "samples": 10, "batch": 8}
    every["compiled"] = False
    plain = {**every, "name": "plain", "set": [*SMALL, TABLE + "}", 'bound={kind="elbo"}']}
    pact = {**every, "name": "pact", "against": "plain", "set": [*SMALL, TABLE + ",halting={target=0.5}}"]}
    settings = Settings(quick=True)
    (first,) = vae_halting.rows(plain, settings)
    assert first["correct"] and first["macs_share"] == 1 and first["nll"] > 0
    (second,) = vae_halting.rows(pact, settings)
    assert second["correct"] and second["error"] < 1e-4 and second["ms"] > 0 and second["form"] == "sparse"
    assert second["lost"] == pytest.approx(second["nll"] - first["nll"], abs=2e-3)
    assert 0 < second["macs_share"] < 1.2
    (again,) = vae_halting.rows(pact, settings)  # from the folder: nothing is trained anew
    assert again["nll"] == second["nll"]
    drawn = vae_halting.draw([{"case": "plain", **first}, {"case": "pact", **second}])
    assert len(drawn.axes[0].lines) == 2
