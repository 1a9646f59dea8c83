"""Who is missing is said by name: before the first step, and in the middle of it."""

import socket
import time
from datetime import timedelta

import deepspeed
import pytest
import torch
import torch.distributed as dist

from trainers.compose import compose
from trainers.errors import ConfigError, DataError, PeerLostError
from trainers.run.engine import build_engine
from trainers.run.peers import lost, lost_peers_named, meet


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port in the environment that a launcher would set, for two ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", str(port))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return port


def test_a_rank_whose_peer_is_never_started_says_so_in_time(place, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    begin = time.monotonic()
    with pytest.raises(PeerLostError, match="1 of 2 ranks joined within runtime.timeout_seconds=1"):
        meet(1)
    assert time.monotonic() - begin < 6


def test_a_rank_that_finds_nobody_says_where_it_looked(place, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    begin = time.monotonic()
    with pytest.raises(PeerLostError, match="rank 0 was not found .* MASTER_ADDR and MASTER_PORT"):
        meet(1)
    assert time.monotonic() - begin < 6


def test_a_port_that_is_taken_is_told_as_such(place, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "0")
    with socket.socket() as other:
        other.bind(("127.0.0.1", place))
        other.listen()
        with pytest.raises(PeerLostError, match="MASTER_PORT is in use"):
            meet(1)


def test_ranks_whose_launcher_keeps_the_store_are_missed_by_name(place, monkeypatch) -> None:
    """Under torchrun the meeting place is there before any rank is."""
    server = dist.TCPStore("127.0.0.1", place, None, True, timedelta(seconds=5))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "1")
    server.set("joined/2", "1")
    with pytest.raises(PeerLostError, match="2 of 3 ranks joined .* missing: rank 0"):
        meet(1)


def test_the_lost_are_those_who_do_not_say_that_they_have_lost_somebody() -> None:
    store = dist.HashStore()
    store.set("lost/3", "1")
    assert lost(store, 1, 4) == [0, 2]
    for rank in (0, 2):
        store.set(f"lost/{rank}", "1")
    assert lost(store, 1, 4) == []


class SilentStore:
    """That of a rank 0 which was stopped, not killed: nobody answers."""

    def set(self, key: str, value: str) -> None:
        time.sleep(60)

    def check(self, keys: list[str]) -> bool:
        return False


def test_who_keeps_the_store_is_lost_with_it() -> None:
    begin = time.monotonic()
    assert lost(SilentStore(), 1, 2) == [0]
    assert time.monotonic() - begin < 5


def test_a_loss_is_named_with_what_was_waited_for() -> None:
    with pytest.raises(PeerLostError) as error, lost_peers_named(dist.HashStore(), 0, 2):
        failure = RuntimeError("[/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1")
        failure.step = 7
        raise failure
    text = "rank 1 did not answer: rank 0 waited in a collective (Connection closed by peer"
    assert str(error.value).startswith(text)
    assert error.value.step == 7


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(DataError, match="no text"), lost_peers_named(dist.HashStore(), 0, 2):
        raise DataError("no text")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("[/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), RuntimeError),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), RuntimeError),
        (AssertionError("zero stage 9"), ConfigError),
    ],
)
def test_a_peer_lost_inside_deepspeed_is_no_wrong_configuration(error, kind, monkeypatch) -> None:
    def fail(**options: object) -> None:
        raise error

    monkeypatch.setattr(deepspeed, "initialize", fail)
    config = compose(["experiment=quickstart"], 1)
    module = torch.nn.Linear(2, 2)
    with pytest.raises(kind) as caught:
        build_engine(config, module, torch.optim.AdamW(module.parameters()), 1)
    assert type(caught.value) is kind
