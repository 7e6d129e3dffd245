"""Square metres in every kind of CRS, against Karney's geodesics and plane geometry."""

import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS

from maskformer.masks import MaskSet
from pipelines.sinks.areas import areas_m2, crs_of, is_planar
from pipelines.sinks.vector import polygons


def square(size: int = 100) -> MaskSet:
    return MaskSet.from_dense(np.ones((1, size, size), bool), [0])


def area_of(objects: MaskSet, transform: Affine, crs: pyproj.CRS) -> float:
    shapes = np.array(polygons(objects, transform), dtype=object)
    return float(areas_m2(objects.areas, shapes, transform, crs)[0])


def karney(transform: Affine, crs: str, size: int = 100, steps: int = 200) -> float:
    """Geodesic area of the square's dense outline, from GeographicLib's polygon routine."""
    outline = shapely.segmentize(polygons(square(size), transform)[0], size * abs(transform.a) / steps)
    x, y = shapely.get_coordinates(outline).T
    longitude, latitude = pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    return abs(pyproj.Geod(ellps="WGS84").polygon_area_perimeter(longitude, latitude)[0])


def web_mercator(latitude: float, pixel: float) -> Affine:
    x, y = pyproj.Transformer.from_crs("EPSG:4326", "EPSG:3857", always_xy=True).transform(10, latitude)
    return Affine(pixel, 0, x, 0, -pixel, y)


def test_degrees_at_60_north() -> None:
    transform = Affine(1e-5, 0, 10, 0, -1e-5, 60)
    area = area_of(square(), transform, pyproj.CRS("EPSG:4326"))
    assert area == pytest.approx(karney(transform, "EPSG:4326"), rel=1e-7)
    # A degree at 60 N is about 111.4 km by 55.8 km; the plane formula on the equator's 111.3 km would double it.
    assert area == pytest.approx(111_412 * 55_800 * 1e-6, rel=2e-3)


def test_web_mercator_at_60_north() -> None:
    transform = web_mercator(60, 1.0)
    area = area_of(square(), transform, pyproj.CRS("EPSG:3857"))
    assert area == pytest.approx(karney(transform, "EPSG:3857"), rel=1e-7)
    assert area == pytest.approx(100 * 100 / 4, rel=5e-3)  # its scale is 1 / cos(60 degrees), squared


def test_a_long_parallel_is_not_a_geodesic() -> None:
    """10 degrees wide, two corners a side: geodesics between them would leave the parallel by 13 km."""
    transform = Affine(0.1, 0, 0, 0, -0.1, 60)
    area = area_of(square(), transform, pyproj.CRS("EPSG:4326"))
    assert area == pytest.approx(karney(transform, "EPSG:4326", steps=20_000), rel=1e-6)


@pytest.mark.parametrize(
    ("epsg", "transform"),
    [
        (2154, Affine(1, 0, 700_000, 0, -1, 6_600_000)),  # Lambert conformal
        (3413, Affine(10, 0, -1_000_000, 0, -10, -1_000_000)),  # polar stereographic
        (3413, Affine.translation(-1e6, -1e6) @ Affine.rotation(30) @ Affine.scale(10, -10)),
    ],
)
def test_conformal_projections_are_geodesic(epsg: int, transform: Affine) -> None:
    crs = pyproj.CRS(epsg)
    assert not is_planar(crs)
    assert area_of(square(), transform, crs) == pytest.approx(karney(transform, f"EPSG:{epsg}"), rel=1e-5)


@pytest.mark.parametrize("epsg", [32617, 32733, 25832, 31467, 27700, 3035, 5070, 6933, 8857, 2193])
def test_equal_area_and_transverse_mercator_are_plane(epsg: int) -> None:
    crs = crs_of(CRS.from_epsg(epsg))
    assert crs is not None and is_planar(crs)
    assert area_of(square(), Affine(0.5, 0, 4e5, 0, -0.5, 4e6), crs) == 2500.0


@pytest.mark.parametrize("epsg", [4326, 3857, 2154, 3413, 2263])
def test_the_others_are_not(epsg: int) -> None:
    assert not is_planar(pyproj.CRS(epsg))


def test_feet() -> None:
    survey_foot = 1200 / 3937
    transform = Affine(1, 0, 600_000, 0, -1, 1_500_000)
    zone = pyproj.CRS(2236)  # Florida East, Transverse Mercator, US survey feet
    assert is_planar(zone)
    assert area_of(square(), transform, zone) == pytest.approx(10_000 * survey_foot**2, rel=1e-12)
    conformal = Affine(1, 0, 1_000_000, 0, -1, 200_000)  # New York Long Island, Lambert conformal, US survey feet
    area = area_of(square(), conformal, pyproj.CRS(2263))
    assert area == pytest.approx(karney(conformal, "EPSG:2263"), rel=1e-6)
    assert area == pytest.approx(10_000 * survey_foot**2, rel=1e-3)


def test_heights_do_not_matter() -> None:
    assert is_planar(pyproj.CRS("EPSG:32617+5703"))
    transform = Affine(1e-5, 0, 10, 0, -1e-5, 60)
    assert area_of(square(), transform, pyproj.CRS("EPSG:4326+3855")) == area_of(
        square(), transform, pyproj.CRS("EPSG:4326")
    )


@pytest.mark.parametrize("west", [179.9995, -180.0005])
def test_across_the_antimeridian(west: float) -> None:
    crs = pyproj.CRS("EPSG:4326")
    there, here = (Affine(1e-5, 0, x, 0, -1e-5, 60) for x in (west, 10.0))
    assert area_of(square(), there, crs) == pytest.approx(area_of(square(), here, crs), rel=1e-6)
    mercator = web_mercator(60, 1.0)
    across = Affine(1, 0, 20037508.34 - 50, 0, -1, mercator.f)
    assert area_of(square(), across, pyproj.CRS("EPSG:3857")) == pytest.approx(
        area_of(square(), mercator, pyproj.CRS("EPSG:3857")), rel=1e-6
    )


def test_beyond_the_pole_is_unknown_and_said(caplog: pytest.LogCaptureFixture) -> None:
    objects = MaskSet.from_dense(np.eye(2, dtype=bool)[:, :, None] & np.ones((2, 2, 2), bool), [0, 0])
    transform = Affine(1, 0, 0, 0, -1, 91)
    shapes = np.array(polygons(objects, transform), dtype=object)
    areas = areas_m2(objects.areas, shapes, transform, pyproj.CRS("EPSG:4326"))
    assert np.isnan(areas[0]) and areas[1] > 0
    assert "1 objects leave the domain" in caplog.text


def test_no_objects() -> None:
    none = MaskSet.empty((5, 5))
    for epsg in (32617, 4326, 3857):
        areas = areas_m2(none.areas, np.array([], dtype=object), Affine(1, 0, 0, 0, -1, 0), pyproj.CRS(epsg))
        assert areas.shape == (0,) and areas.dtype == np.float64
