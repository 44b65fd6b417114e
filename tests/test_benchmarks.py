"""The contenders of benchmarks/phase_field.py solve the same equation."""

import json

import numpy as np
import pytest

from benchmarks import phase_field as benchmark
from mdn.phase_field import AllenCahn

RIVALS = {benchmark.ROLL: "jax", benchmark.NUMBA: "numba", benchmark.PLAIN: "numba", benchmark.TORCH: "torch"}
# no two coefficients alike, and a domain that is no square
PARAMS = AllenCahn(shape=(24, 40), alpha=1.1, beta=1.3, gamma=0.9, kappa=1.7, mobility=0.8, dx=1.2)


@pytest.mark.parametrize("rival", RIVALS)
def test_contenders_agree(rival):
    pytest.importorskip(RIVALS[rival], reason=f"{RIVALS[rival]} is not installed: pip install numba torch==2.13.0")
    eta = 0.3 * np.random.default_rng(0).random((5, 24, 40), np.float32)
    contenders = benchmark.contenders(PARAMS, eta)
    own, other = (np.array(contenders[name](24)) for name in (benchmark.MDN, rival))
    assert np.abs(own - eta).max() > 0.1
    np.testing.assert_allclose(other, own, atol=2e-6)


def test_rates_are_told_and_kept_part_by_part(tmp_path, capsys):
    table = benchmark.rates(sides=(32,), steps=12, rounds=2, grown=6.0)
    assert 0 < table["targets"]["largest difference at most 1e-4"] < 1e-5
    benchmark.show("rates", table)
    printed = capsys.readouterr().out
    assert all(row[2] in printed for row in table["rows"])
    path = tmp_path / "results" / "phase_field.json"
    benchmark.save(path, "floor", {"columns": [], "rows": []})
    benchmark.save(path, "rates", table)
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert set(kept) == {"floor", "rates"} and kept["rates"]["rows"] == table["rows"]
    assert {"command", "commit", "machine"} <= set(kept["rates"])
    assert [p.name for p in path.parent.iterdir()] == [path.name]
