"""What a pickle would build, worked out from its opcodes before anything is built.

A pickle is a program for a stack machine. A few hundred bytes of it can nest a million deep (what hashes or prints the
result then overruns the stack), point at one value so often that it unfolds to terabytes, or ask for a table of
references of any length. Here the program runs on nodes in place of values: `check` returns the globals and the
persistent ids a file asks for, or says why it is refused. The language is that of `pickletools`; of its opcodes those
are known that published checkpoints are written in.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pickle import UnpicklingError
from typing import IO, Any

MOST_OPCODES = 200_000  # Swin-L's checkpoint has some 20 000
DEEPEST = 64
SLACK = 1 << 20  # bytes that a file may always unfold to
UNFOLDED = 4  # times its size that a file may unfold to

_NOTHING = {"PROTO", "FRAME"}
_LITERALS = {
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT",
    "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "EMPTY_TUPLE",
    "EMPTY_DICT", "EMPTY_SET",
}  # fmt: skip
_FROM_MARK = {"TUPLE", "LIST", "DICT", "FROZENSET"}  # a new value of all above the mark
_INTO_TOP_FROM_MARK = {"APPENDS", "SETITEMS", "ADDITEMS"}
_FROM = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "REDUCE": 2, "NEWOBJ": 2, "BINPERSID": 1}
_INTO_TOP = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_PUT = {"PUT", "BINPUT", "LONG_BINPUT"}
_GET = {"GET", "BINGET", "LONG_BINGET"}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_SHORT = 256  # characters of a literal that are kept to be looked at


class Node:
    """A value to be: of what size by itself, made of which others; `literal` where it is a short one."""

    __slots__ = ("literal", "parts", "size")

    def __init__(self, size: int = 1, literal: Any = None, parts: list[Node] | None = None) -> None:
        self.size, self.literal, self.parts = size, literal, parts if parts is not None else []


@dataclass
class Asked:
    """What a pickle asks for beside plain values: globals as "module.name", persistent ids as their literals."""

    globals: list[str] = field(default_factory=list)
    persistent: list[tuple[Any, ...]] = field(default_factory=list)


def check(file: IO[bytes], size: int, admitted: Callable[[str], bool] = lambda _: True) -> Asked:
    """Follow the pickle that `file` (of `size` bytes in all) stands at, up to its end.

    admitted: whether a global ("module.name") may be asked for. UnpicklingError says why it is refused; what is no
    pickle, or cut off, fails in other ways as well (ValueError, KeyError, IndexError).
    """
    machine = _Machine(admitted)
    for count, (name, argument) in enumerate(_opcodes(file)):
        if count >= MOST_OPCODES:
            raise UnpicklingError(f"it has more than {MOST_OPCODES} instructions")
        machine.step(name, argument)
    _measure(machine.made, size * UNFOLDED + SLACK)
    return machine.asked


def _opcodes(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Names and arguments up to STOP; as pickletools.genops, but for the text of Python 2, which may hold any byte."""
    while True:
        code = file.read(1)
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError("it ends before its last instruction" if not code else f"{code!r} is no instruction")
        if opcode.name == "STOP":
            return
        if opcode.arg is None:
            yield opcode.name, None
        elif opcode.name == "STRING":
            yield opcode.name, file.readline()
        else:
            yield opcode.name, opcode.arg.reader(file)


class _Machine:
    def __init__(self, admitted: Callable[[str], bool]) -> None:
        self.admitted = admitted
        self.asked = Asked()
        self.made: list[Node] = []
        self.stack: list[Node] = []
        self.marks: list[int] = []
        self.memo: dict[int, Node] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self._push(_leaf(argument))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in _FROM_MARK:
            self._push(Node(parts=self._pop_mark()))
        elif name in _INTO_TOP_FROM_MARK:
            parts = self._pop_mark()
            self.stack[-1].parts.extend(parts)
        elif name in _FROM:
            self._make(name, self._pop(_FROM[name]))
        elif name in _INTO_TOP:
            parts = self._pop(_INTO_TOP[name])
            self.stack[-1].parts.extend(parts)
        elif name == "GLOBAL":
            self._global(argument.replace(" ", ".", 1))
        elif name == "STACK_GLOBAL":
            self._global(".".join(str(part.literal) for part in self._pop(2)))
        elif name in _PUT:
            self._put(int(argument))
        elif name == "MEMOIZE":
            self._put(len(self.memo))
        elif name in _GET:
            self.stack.append(self.memo[int(argument)])
        elif name not in _NOTHING:
            raise UnpicklingError(f"it uses the instruction {name}")

    def _push(self, node: Node) -> None:
        self.made.append(node)
        self.stack.append(node)

    def _make(self, name: str, parts: list[Node]) -> None:
        if name == "BINPERSID":
            self.asked.persistent.append(tuple(part.literal for part in parts[0].parts))
        self._push(Node(parts=parts))

    def _pop(self, count: int) -> list[Node]:
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise UnpicklingError("it takes more than there is")
        parts = self.stack[-count:]
        del self.stack[-count:]
        return parts

    def _pop_mark(self) -> list[Node]:
        start = self.marks.pop()
        parts = self.stack[start:]
        del self.stack[start:]
        return parts

    def _put(self, place: int) -> None:
        if not 0 <= place <= MOST_OPCODES:  # the reader's table is as long as the greatest number
            raise UnpicklingError(f"it numbers a value {place}")
        self.memo[place] = self.stack[-1]

    def _global(self, name: str) -> None:
        if not self.admitted(name):
            raise UnpicklingError(f"it asks for {name}")
        self.asked.globals.append(name)
        self._push(Node(literal=name))


def _leaf(argument: Any) -> Node:
    if isinstance(argument, str | bytes | bytearray):
        # a short word counts 1, about what it takes to point at it
        return Node(max(1, len(argument) // 64 * 64), argument if len(argument) <= _SHORT else None)
    if isinstance(argument, int) and argument.bit_length() > 64:
        return Node(argument.bit_length() // 8)
    return Node(literal=argument)


def _measure(made: list[Node], most: int) -> None:
    """UnpicklingError where a value holds itself, nests too deep, or would unfold to more than `most` bytes."""
    done: dict[int, tuple[int, int]] = {}  # depth and unfolded size; None while its parts are looked at
    under_way: set[int] = set()
    for start in made:
        path = [start]
        while path:
            node = path[-1]
            key = id(node)
            if key in done:
                path.pop()
                continue
            waiting = [part for part in node.parts if id(part) not in done]
            if key in under_way and waiting:
                raise UnpicklingError("it holds a value that holds itself")
            if waiting:
                under_way.add(key)
                path.extend(waiting)
                continue
            path.pop()
            under_way.discard(key)
            depth = 1 + max((done[id(part)][0] for part in node.parts), default=0)
            size = node.size + sum(done[id(part)][1] for part in node.parts)
            if depth > DEEPEST:
                raise UnpicklingError(f"it nests more than {DEEPEST} deep")
            if size > most:
                raise UnpicklingError(f"it would unfold to more than {most} bytes")
            done[key] = depth, size
