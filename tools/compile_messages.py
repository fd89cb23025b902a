"""Compile ``src/hansa/wire/messages.proto`` into ``messages.binpb`` and ``typings/hansa_messages.pyi``.

    python tools/compile_messages.py

Needs grpcio-tools (in the ``dev`` extra). Both outputs depend on the .proto only, not on the
version of the compiler: what compilers add is stripped, and the stub is rendered here.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pb2 import FileDescriptorSet as FileSet

ROOT = Path(__file__).resolve().parents[1]
WIRE = ROOT / "src" / "hansa" / "wire"
STUB = ROOT / "typings" / "hansa_messages.pyi"

_PYTHON = {
    FieldDescriptorProto.TYPE_STRING: "str",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_DOUBLE: "float",
    FieldDescriptorProto.TYPE_UINT32: "int",
    FieldDescriptorProto.TYPE_UINT64: "int",
}

_HEADER = '''\
"""Generated from messages.proto by tools/compile_messages.py. Do not edit."""

from collections.abc import Iterable
from typing import Literal

from google.protobuf.internal.containers import (
    RepeatedCompositeFieldContainer,
    RepeatedScalarFieldContainer,
)
from google.protobuf.message import Message

'''


def descriptor(proto: Path) -> bytes:
    """The serialised FileDescriptorProto of ``proto``, the same for every compiler version."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        arguments = [f"-I{proto.parent}", f"--descriptor_set_out={out}", str(proto)]
        command = [sys.executable, "-m", "grpc_tools.protoc", *arguments]
        subprocess.run(command, check=True)  # noqa: S603 (nothing in it comes from outside)
        file = FileSet.FromString(out.read_bytes()).file[0]
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
    return file.SerializeToString(deterministic=True)


def stub(serialised: bytes) -> str:
    """The type stub of all messages in a serialised FileDescriptorProto."""
    file = FileDescriptorProto.FromString(serialised)
    return _HEADER + "\n".join(_class(message) for message in file.message_type)


def _class(message: DescriptorProto) -> str:
    lines = [f"class {message.name}(Message):"]
    arguments = ["        self,", "        *,"] if message.field else ["        self,"]
    for field in message.field:
        held, given = _types(field)
        lines.append(f"    {field.name}: {held}")
        arguments.append(f"        {field.name}: {given} = ...,")
    lines += ["    def __init__(", *arguments, "    ) -> None: ..."]
    for group, oneof in enumerate(message.oneof_decl):
        members = [
            field.name for field in message.field if field.HasField("oneof_index") and field.oneof_index == group
        ]
        lines += [
            "    def WhichOneof(  # noqa: N802 (protobuf's name)",
            "        self,",
            f"        oneof_group: Literal[{oneof.name!r}],",
            f"    ) -> Literal[{', '.join(map(repr, members))}] | None: ...",
        ]
    return "\n".join(lines).replace("'", '"') + "\n"


def _types(field: FieldDescriptorProto) -> tuple[str, str]:
    """What reading the field gives, and what the constructor takes."""
    message = field.type == FieldDescriptorProto.TYPE_MESSAGE
    one = field.type_name.rpartition(".")[2] if message else _PYTHON[field.type]
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        many = "RepeatedCompositeFieldContainer" if message else "RepeatedScalarFieldContainer"
        return f"{many}[{one}]", f"Iterable[{one}]"
    return one, f"{one} | None" if message else one


def main() -> None:
    """Write both files."""
    serialised = descriptor(WIRE / "messages.proto")
    (WIRE / "messages.binpb").write_bytes(serialised)
    STUB.write_text(stub(serialised), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
