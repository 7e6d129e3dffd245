"""Classes by name: what the model tells apart, and which values of a label file mean which class."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapters.errors import InputError
from adapters.reading import checked, listing, one_of

Value = int | str
IGNORE = -1  # the pixel or object says nothing: no loss, no score
BACKGROUND = -2  # the pixel is known to be none of the classes
NODATA_ID = 255  # in semantic.tif; class ids are 1..254, 0 is "nothing"

# Okabe and Ito's palette (told apart by colour-blind readers) without its black; further classes go round
# the hues.
_PALETTE = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def value_key(value: Any) -> str:
    """Spelling that equal values share: 1, 1.0, "1" and "1.0" are one value, "Tree" and " tree" too."""
    if isinstance(value, bool):
        value = int(value)
    text = str(value).strip().casefold()
    return re.sub(r"^(-?\d+)\.0+$", r"\1", text)


@dataclass(frozen=True)
class Class:
    """One class. `values` are what it is called in label files; without any its name is looked for."""

    name: str
    kind: Literal["thing", "stuff"] = "thing"
    values: tuple[Value, ...] = ()
    colour: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise InputError(f"class: expected a name, found {self.name!r}")
        what = f"class '{self.name}'"
        one_of(self.kind, f"{what}: kind", ("thing", "stuff"))
        object.__setattr__(self, "values", _values(self.values, f"{what}: values"))
        if self.colour is not None:
            if not isinstance(self.colour, str) or not re.fullmatch("#[0-9a-fA-F]{6}", self.colour):
                raise InputError(f"{what}: colour: expected '#rrggbb', found {self.colour!r}")
            object.__setattr__(self, "colour", self.colour.lower())

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "values": list(self.values), "colour": self.colour}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Class:
        return cls(**checked(data, "class", cls.__dataclass_fields__, ["name"]))


@dataclass(frozen=True)
class ClassSet:
    """The classes in order; an object's label is an index into it.

    ignore_values: values that say nothing about the pixel or object. Never the same as background.
    background_values: values that say "none of the classes". None means 0, where no class and no ignore
        value takes it; said explicitly it also beats a label raster's nodata value.
    """

    classes: tuple[Class, ...]
    ignore_values: tuple[Value, ...] = ()
    background_values: tuple[Value, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "ignore_values", _values(self.ignore_values, "ignore_values"))
        if self.background_values is not None:
            object.__setattr__(self, "background_values", _values(self.background_values, "background_values"))
        if not 1 <= len(self.classes) <= 254:
            raise InputError(f"classes: expected 1 to 254 of them, found {len(self.classes)}")
        seen: dict[str, str] = {}
        claims = [(f"class '{c.name}'", {c.name, *c.values}) for c in self.classes]
        claims += [("ignore_values", set(self.ignore_values))]
        claims += [("background_values", set(self.background_values or ()))]
        for owner, values in claims:
            for key in {value_key(v) for v in values}:
                if key in seen:
                    raise InputError(f"classes: '{key}' belongs to both {seen[key]} and {owner}")
                seen[key] = owner

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[Class]:
        return iter(self.classes)

    def __getitem__(self, index: int) -> Class:
        return self.classes[index]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(c.name for c in self.classes)

    @property
    def is_thing(self) -> tuple[bool, ...]:
        return tuple(c.kind == "thing" for c in self.classes)

    @property
    def colours(self) -> tuple[str, ...]:
        """One '#rrggbb' a class: its own, else the palette's."""
        return tuple(c.colour or _auto_colour(i) for i, c in enumerate(self.classes))

    @staticmethod
    def id_of(index: int) -> int:
        """Value of a class in files (semantic.tif, class_id): index + 1, because 0 is "nothing"."""
        return int(index) + 1

    def index(self, value: Any) -> int:
        """Index of the class that has this source value or name, else InputError with the known ones."""
        code = self._table().get(value_key(value))
        if code is None or code < 0:
            raise InputError(f"unknown class '{value}'; known are {self.describe()}")
        return code

    def codes(self, counts: Mapping[Any, int], where: str, unit: str = "objects") -> dict[Any, int]:
        """Class index, IGNORE or BACKGROUND of every value found in a label file.

        counts: how often each value occurs. InputError names all unknown values with their counts.
        """
        table = self._table()
        codes = {value: table.get(value_key(value)) for value in counts}
        unknown = [f"{value!r} ({counts[value]} {unit})" for value, code in codes.items() if code is None]
        if unknown:
            plural = "s" if len(unknown) > 1 else ""
            raise InputError(f"{where}: unknown class value{plural} {listing(unknown)}; known are {self.describe()}")
        return {value: code for value, code in codes.items() if code is not None}

    def claims(self, value: Any) -> bool:
        """Whether a class, `ignore_values` or an explicit `background_values` names this value."""
        return value_key(value) in self._table(implicit_background=False)

    def describe(self) -> str:
        """The known values in one line: `building (1), road (2, 'street'); ignore: 255; background: 0`."""
        words = [c.name + (f" ({listing(repr(v) for v in c.values)})" if c.values else "") for c in self.classes]
        parts = [listing(words)]
        for name, code in (("ignore", IGNORE), ("background", BACKGROUND)):
            values = [key for key, known in self._table().items() if known == code]
            if values:
                parts.append(f"{name}: {listing(values)}")
        return "; ".join(parts)

    def _table(self, implicit_background: bool = True) -> dict[str, int]:
        table: dict[str, int] = {}
        for index, item in enumerate(self.classes):
            table.update({value_key(v): index for v in (item.name, *item.values)})
        table.update({value_key(v): IGNORE for v in self.ignore_values})
        table.update({value_key(v): BACKGROUND for v in self.background_values or ()})
        if self.background_values is None and implicit_background:
            table.setdefault("0", BACKGROUND)
        return table

    def to_dict(self) -> dict[str, Any]:
        background = self.background_values
        return {
            "classes": [c.to_dict() for c in self.classes],
            "ignore_values": list(self.ignore_values),
            "background_values": None if background is None else list(background),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ClassSet:
        values = checked(data, "classes", cls.__dataclass_fields__, ["classes"])
        if isinstance(values["classes"], str | Mapping) or not isinstance(values["classes"], Sequence):
            raise InputError(f"classes: expected a list, found {type(values['classes']).__name__}")
        values["classes"] = tuple(Class.from_dict(c) for c in values["classes"])
        return cls(**values)


def _values(values: Any, what: str) -> tuple[Value, ...]:
    """A tuple of ints and strings, else InputError."""
    if isinstance(values, str | int) or not isinstance(values, Sequence):
        raise InputError(f"{what}: expected a list of numbers and words, found {values!r}")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(f"{what}: expected whole numbers and words, found {value!r}")
    return tuple(values)


def _auto_colour(index: int) -> str:
    if index < len(_PALETTE):
        return _PALETTE[index]
    # golden-ratio steps keep any number of hues apart
    rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.55 + 0.35 * (index % 2), 0.9)
    return "#" + "".join(f"{round(255 * v):02x}" for v in rgb)
