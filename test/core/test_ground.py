"""Ground positions against a synthetic camera with known truth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pebal_core.errors import PebalError
from pebal_core.objects import CameraModel, GroundPlane, Locator, Mounting, ObjectRules, find_objects

K = np.array([[1000.0, 0, 640], [0, 1000, 360], [0, 0, 1]])
POLYNOMIAL = np.array([-0.3, 0.1, 0.001, 0.0005, -0.01])
KANNALA_BRANDT = np.array([-0.01, 0.02, -0.005, 0.001])
NONE = np.zeros(5)


def ground(
    pitch: float = 0.0, roll: float = 0.0, height: float = 1.5, distortion: np.ndarray = NONE, model: str = "plumb_bob"
) -> GroundPlane:
    return GroundPlane.from_mounting(CameraModel(1280, 720, K, distortion, model), Mounting(height, pitch, roll))


def seen(points: np.ndarray, plane: GroundPlane) -> np.ndarray:
    """Where OpenCV's projection puts points N×3 of the ground frame, N×2 pixels."""
    rotation = plane.rotation.T
    vector = cv2.Rodrigues(rotation)[0]
    shift = -rotation @ plane.origin
    project = cv2.fisheye.projectPoints if plane.camera.distortion_model == "equidistant" else cv2.projectPoints
    return project(points.reshape(-1, 1, 3).astype(float), vector, shift, K, plane.camera.distortion)[0].reshape(-1, 2)


@pytest.mark.parametrize("distances", [(5, 10, 20, 30, 50)])
@pytest.mark.parametrize(
    ("pitch", "roll", "distortion", "model"),
    [
        (0, 0, NONE, "plumb_bob"),
        (8, 0, NONE, "plumb_bob"),
        (4, 3, POLYNOMIAL, "plumb_bob"),
        (-2, -4, KANNALA_BRANDT, "equidistant"),
    ],
)
def test_positions_are_exact_to_one_percent(
    pitch: float, roll: float, distortion: np.ndarray, model: str, distances: tuple[int, ...]
) -> None:
    plane = ground(pitch, roll, distortion=distortion, model=model)
    truth = np.array([[x, y, 0] for x in distances for y in (-2, 0, 2)])
    found = plane.project(seen(truth, plane))
    assert (np.linalg.norm(found - truth[:, :2], axis=1) <= 0.01 * truth[:, 0]).all()


def test_a_camera_that_looks_down_sees_the_horizon_higher() -> None:
    level, down = ground(pitch=0), ground(pitch=10)
    assert np.isnan(level.project(np.array([[640, 300]]))).all()
    assert np.isnan(down.project(np.array([[640, 100]]))).all()
    assert 5 < down.project(np.array([[640, 400]]))[0, 0] < 8  # 40 px below the centre and 10° down


def test_nothing_lies_above_the_horizon() -> None:
    rows = np.array([[640, y] for y in (0, 200, 359, 360)])
    assert np.isnan(ground().project(rows)).all()


@pytest.mark.parametrize(("distance", "expected"), [(10, 0.59), (30, 5.4), (50, 15.9)])
def test_what_half_a_degree_of_pitch_costs(distance: float, expected: float) -> None:
    """Against trigonometry: an error of the pitch of δ moves a point at d from height h to h / tan(atan(h / d) ∓ δ)."""
    mounting = Mounting(1.5, pitch_std=0.5, roll_std=0, height_std=0, pixel_std=0)
    plane = GroundPlane.from_mounting(CameraModel(1280, 720, K, NONE), mounting)
    pixel = seen(np.array([[distance, 0, 0]]), plane)[0]
    delta = np.radians(0.5)
    angle = np.arctan2(1.5, distance)
    exact = (1.5 / np.tan(angle - delta) - 1.5 / np.tan(angle + delta)) / 2
    deviation = np.sqrt(plane.covariances(pixel[None])[0, 0, 0])
    assert deviation == pytest.approx(exact, rel=1e-3)
    assert deviation == pytest.approx(expected, rel=0.02)


def test_covariance_agrees_with_drawn_cameras() -> None:
    mounting = Mounting(1.5, pitch=5, roll=1, pitch_std=0.1, roll_std=0.3, height_std=0.02, pixel_std=0.5)
    camera = CameraModel(1280, 720, K, POLYNOMIAL)
    plane = GroundPlane.from_mounting(camera, mounting)
    pixel = seen(np.array([[12, 3, 0]]), plane)[0]
    random = np.random.default_rng(0)
    drawn = []
    for pitch, roll, height, u, v in random.normal([5, 1, 1.5, *pixel], [0.1, 0.3, 0.02, 0.5, 0.5], size=(4000, 5)):
        one = GroundPlane.from_mounting(camera, Mounting(height, pitch, roll))
        drawn.append(one.project(np.array([[u, v]]))[0])
    np.testing.assert_allclose(plane.covariances(pixel[None])[0], np.cov(np.array(drawn).T), rtol=0.15, atol=2e-3)


def test_a_deviation_that_reaches_the_horizon_has_no_bound() -> None:
    assert np.isinf(ground().covariances(np.array([[640, 365]]))).all()


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: CameraModel(640, 480, np.diag([0.0, 500, 1]), NONE), "focal lengths 0 and 500; they must be positive"),
        (lambda: CameraModel(640, 480, np.full((3, 3), np.nan), NONE), "not finite"),
        (lambda: ground(pitch=-40), "horizon lies below the image"),
        (lambda: ground(height=0), "height of the camera must lie between 0 and 100"),
        (lambda: ground(pitch=90), "pitch of the camera must lie between"),
    ],
)
def test_bad_geometry_is_refused(make: object, reason: str) -> None:
    assert callable(make)
    with pytest.raises(PebalError, match=reason):
        make()


def test_objects_get_a_place_at_any_image_size() -> None:
    """The calibration is of 1280×720, the image half as large."""
    plane = ground(pitch=3)
    contact = seen(np.array([[12.0, 0, 0]]), plane)[0]
    energy = np.full((360, 640), -10, np.float32)
    labels = np.zeros((360, 640), np.uint8)
    bottom = round(contact[1] / 2)
    energy[bottom - 20 : bottom + 1, 310:331] = -2
    energy[20:60, 100:140] = -2  # above the horizon
    objects = find_objects(energy, labels, ObjectRules(-4, -5, carriers=None)).objects
    above, below = Locator(plane, (2.0, 2.0)).locate(objects)
    assert above.position is None and above.distance is None
    assert below.distance == pytest.approx(12, rel=0.02)
    assert below.distance_std is not None and 0.4 < below.distance_std < 1.5
    points = Locator(plane, (2.0, 2.0)).foot(below)
    assert len(points) == 21 and np.allclose(points[:, 0], 12, rtol=0.02)
    assert points[0, 1] > points[-1, 1]  # the left of the image lies at greater y
