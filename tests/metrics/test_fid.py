from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orthotune.errors import DataError
from tests.support.images import dino, noise, save

pytest.importorskip("torchmetrics")

from orthotune.metrics.fid import frechet_distance, measure_fid


def test_one_feature_by_hand() -> None:
    # means 1 and 12, variances 2 and 8: 11² + (sqrt 2 - sqrt 8)² = 121 + 2
    real, made = torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [14.0]])
    assert frechet_distance(real, made) == pytest.approx(123, rel=1e-9)


def test_two_features_against_the_matrix_root_of_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    generator = torch.Generator().manual_seed(0)
    real, made = (torch.randn(30, 4, generator=generator).double() @ torch.randn(4, 4, generator=generator).double()
                  for _ in range(2))  # fmt: skip
    mean = float((real.mean(0) - made.mean(0)).square().sum())
    root = linalg.sqrtm((real.T.cov() @ made.T.cov()).numpy()).real
    by_scipy = mean + float(real.T.cov().trace() + made.T.cov().trace()) - 2 * root.trace()
    assert frechet_distance(real, made) == pytest.approx(by_scipy, rel=1e-6)


def test_the_same_images_are_at_no_distance_and_others_are(tmp_path: Path) -> None:
    model = dino(tmp_path / "dino")
    real = save(tmp_path / "real", **{f"r{seed}": noise(seed, 20 + seed, 28) for seed in range(5)})
    made = save(tmp_path / "made", **{f"m{seed}": noise(seed, 30, 20) // 4 for seed in range(3)})
    same = measure_fid(real, real, model=model, batch_size=2).summary["fid"]
    other = measure_fid(made, real, model=model)
    # Unit vectors: 1e-6 is float32 rounding of covariances that are not of full rank.
    assert same == pytest.approx(0, abs=1e-4)
    assert other.summary["fid"] > 10 * max(same, 1e-4)
    assert other.summary["real_images"] == 5
    assert other.summary["results"] == 3


def test_one_image_has_no_covariance(tmp_path: Path) -> None:
    model = dino(tmp_path / "dino")
    one = save(tmp_path / "one", a=noise(0))
    two = save(tmp_path / "two", a=noise(0), b=noise(1))
    with pytest.raises(DataError, match="FID of results. Found: 1 image"):
        measure_fid(one, two, model=model)
    (two / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match="FID of real images"):
        measure_fid(one, two, model=model)
