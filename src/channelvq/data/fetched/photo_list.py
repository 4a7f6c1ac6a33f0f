"""The photographs that bundled weights may be trained on, one row each: file, hash, licence, author and split.

Splits are fixed by hand, not by hash: there are few photographs, and the held-out ones have to be real photographs
of several kinds. Only CC0, CC-BY and public-domain works are listed; share-alike ones in the same archives are not.
"""

from dataclasses import dataclass

from channelvq.data.split import Split


@dataclass(frozen=True)
class Photo:
    """One photograph: `file` is its name in its archive, `sha256` of that file, `licence` an SPDX identifier."""

    file: str
    sha256: str
    licence: str
    attribution: str
    split: Split

    @property
    def name(self) -> str:
        """The file name without its ending: the key of every crop of this photograph."""
        return self.file.rsplit(".", 1)[0]


SCIKIT_IMAGE = (
    Photo("astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
          "public-domain", "Eileen Collins, NASA Great Images", "test"),
    Photo("chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
          "CC0-1.0", "Chelsea the cat, Stefan van der Walt", "test"),
    Photo("coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
          "CC0-1.0", "Coffee cup, Rachel Michetti, Pikolo Espresso Bar", "test"),
    Photo("camera.png", "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
          "CC0-1.0", "Photographer, Lav Varshney", "train"),
    Photo("rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
          "public-domain", "Launch of DSCOVR on Falcon 9, SpaceX", "validation"),
    Photo("retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
          "CC0-1.0", "Fundus of a left eye, Mikael Häggström", "train"),
    Photo("hubble_deep_field.jpg", "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
          "public-domain", "Hubble eXtreme Deep Field, NASA", "train"),
    Photo("brick.png", "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
          "CC0-1.0", "Bricks25, CC0Textures", "train"),
    Photo("grass.png", "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
          "CC0-1.0", "Grass 01, linolafett", "train"),
    Photo("gravel.png", "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
          "CC0-1.0", "Gravel04, CC0Textures", "train"),
)  # fmt: skip

SCIKIT_LEARN = (
    Photo("china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
          "CC-BY-2.0", "Photo 6061409035, danielbuechele", "train"),
    Photo("flower.jpg", "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
          "CC-BY-2.0", "Photo 6056698931, vultilion", "test"),
)  # fmt: skip

LOMIRI = (
    Photo("aitzgorri_by_Aitzol_Berasategi.jpg", "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
          "CC-BY-4.0", "Aitzgorri, Aitzol Berasategi, 2018", "train"),
    Photo("friends_by_Aitzol_Berasategi.jpg", "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d",
          "CC-BY-4.0", "Friends, Aitzol Berasategi, 2018", "test"),
    Photo("life_by_Aitzol_Berasategi.jpg", "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05",
          "CC-BY-4.0", "Life, Aitzol Berasategi, 2018", "train"),
    Photo("picosdeeuropa_by_Aitzol_Berasategi.jpg", "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
          "CC-BY-4.0", "Picos de Europa, Aitzol Berasategi, 2018", "test"),
    Photo("sunset_by_Aitzol_Berasategi.jpg", "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18",
          "CC-BY-4.0", "Sunset, Aitzol Berasategi, 2018", "train"),
    Photo("Picture_0B_by_freespace.jpg", "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad",
          "CC-BY-4.0", "Picture 0B, Trevor \"Freespace\", 2018", "test"),
    Photo("Picture_1A_by_freespace.jpg", "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b",
          "CC-BY-4.0", "Picture 1A, Trevor \"Freespace\", 2018", "train"),
    Photo("Wine_by_Jakkub_Mede.jpg", "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74",
          "CC-BY-4.0", "Wine, Jakub Mede, 2018", "validation"),
    Photo("seeding_by_Clements_Engelhardt.jpg", "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
          "CC0-1.0", "Seeding, Clemens Engelhardt, 2018", "train"),
)  # fmt: skip

# The archive's own puzzle files call these three public domain; the others in it are under the GFDL.
PALAPELI = (
    Photo("cincinnati-bridge.jpg", "09772d09318b34a5c5edd58ee86ff462bcd2907006f31cc8e0704310f8e9ab60",
          "public-domain", "Roebling Suspension Bridge, Derek Jensen", "train"),
    Photo("citrus-fruits.jpg", "0cbd7154a14789803167c86705130d0358875198231269df168ea26224e70848",
          "public-domain", "Citrus fruits, US Department of Agriculture", "train"),
    Photo("european-honey-bee.jpg", "9d54ae706bddd899c91b2b801d9ca4556a5a9a399b4043f9d539df62a8cb7f27",
          "public-domain", "European honey bee, John Severns", "train"),
)  # fmt: skip

PHOTOS = (*SCIKIT_IMAGE, *SCIKIT_LEARN, *LOMIRI, *PALAPELI)
