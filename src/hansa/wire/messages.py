"""The control messages as Python classes, built from ``messages.binpb`` when this is imported.

The code that ``protoc`` generates refuses to run under a protobuf runtime older than its generator
and warns under a much newer one. A serialised descriptor has no such check: the same bytes give
the same classes under every protobuf that Hansa allows. ``typings/hansa_messages.pyi`` tells type checkers
and editors the fields; ``tools/compile_messages.py`` writes both from ``messages.proto``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool

if TYPE_CHECKING:
    from hansa_messages import *  # noqa: F403

_DESCRIPTOR = Path(__file__).with_name("messages.binpb").read_bytes()

# A pool of our own: another library's "messages.proto" in the default pool would collide with it.
_POOL = DescriptorPool()
_POOL.AddSerializedFile(_DESCRIPTOR)

__all__ = sorted(kind.name for kind in FileDescriptorProto.FromString(_DESCRIPTOR).message_type)

for _name in __all__:
    _class = message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"hansa.{_name}"))
    _class.__module__ = __name__
    globals()[_name] = _class
