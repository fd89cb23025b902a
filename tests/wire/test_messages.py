import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.message import DecodeError

from hansa.wire import messages as m

ROOT = Path(__file__).resolve().parents[2]
WIRE = Path(m.__file__).parent


@pytest.fixture(scope="module")
def compiler() -> ModuleType:
    path = ROOT / "tools" / "compile_messages.py"
    if not path.exists():
        pytest.skip("tools/ is not here: the compiler of messages cannot be tested")
    spec = importlib.util.spec_from_file_location("compile_messages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_descriptor_matches_the_proto(compiler: ModuleType):
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed (the dev extra has it)")
    assert (WIRE / "messages.binpb").read_bytes() == compiler.descriptor(WIRE / "messages.proto")


def test_the_committed_stub_matches_the_descriptor(compiler: ModuleType):
    stub = compiler.stub((WIRE / "messages.binpb").read_bytes())
    assert compiler.STUB.read_text(encoding="utf-8") == stub


def test_a_message_survives_the_wire():
    offer = m.Offer(
        dataset="肿瘤", rows=2**64 - 1, columns=[m.Column(name="半径", type="float64")], allow=["logistic-regression"]
    )
    hello = m.Hello(protocol=1, offers=[offer], pending=[m.Pending(run="r", version=3)])
    again = m.Hello.FromString(hello.SerializeToString())
    assert again == hello
    assert again.offers[0].columns[0].name == "半径"


def test_a_notice_says_all_there_is_to_say():
    settled = [m.Settled(run="r", version=2, counted=True)]
    notice = m.Notice(settled=settled, work=[m.Work(run="r", version=3)])
    again = m.Notice.FromString(notice.SerializeToString())
    assert again.settled[0].counted
    assert again.work[0].version == 3
    assert not again.HasField("welcome")
    assert not again.HasField("removed")


def test_damaged_bytes_are_no_message():
    with pytest.raises(DecodeError):
        m.Hello.FromString(b"\xff\xff\xff")


def test_the_messages_do_not_touch_protobuf_s_shared_pool():
    code = (
        "import hansa.wire.messages\n"
        "from google.protobuf import descriptor_pool as d\n"
        "try: d.Default().FindMessageTypeByName('hansa.Hello')\n"
        "except KeyError: print('apart')\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "apart"
