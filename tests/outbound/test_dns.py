"""Host names: from the hosts file, from name servers, from memory; and slow ones that delay no others."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from homeserver.outbound import dns as subject
from homeserver.outbound.dns import DnsLookup, NameServers, read_hosts_file
from tests.fakes.clock import FakeClock
from tests.waiting import WAIT_S

pytestmark = pytest.mark.anyio


class NameServer(asyncio.DatagramProtocol):
    """Answers with the records that it has; names that contain ``slow`` get no answer."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        self.ttl = 60
        self.asked: list[str] = []
        self.all_slow_asked = asyncio.Event()
        self.slow_expected = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name, kind = question.name.to_text(omit_final_dot=True), dns.rdatatype.to_text(question.rdtype)
        self.asked.append(f"{name} {kind}")
        if "slow" in name:
            if sum("slow" in asked for asked in self.asked) >= self.slow_expected:
                self.all_slow_asked.set()
            return
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        if found := self.records.get((name, kind)):
            answer.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *found))
        elif not any(known == name for known, _ in self.records):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        self.transport.sendto(answer.to_wire(), address)


@pytest.fixture
async def server() -> AsyncIterator[NameServer]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        NameServer, local_addr=("127.0.0.1", 0)
    )
    yield protocol
    transport.close()


@pytest.fixture
def hosts_file(tmp_path: Path) -> Path:
    file = tmp_path / "hosts"
    file.write_text(
        "# ours\n127.0.0.1\tlocalhost\n192.0.2.7 Inside.test other.test # two names\n\nnonsense\n::9 six.test\n"
    )
    return file


@pytest.fixture
async def lookup(server: NameServer, hosts_file: Path, tmp_path: Path) -> AsyncIterator[DnsLookup]:
    class AtPort(NameServers):
        async def resolver(self) -> object:  # type: ignore[override]
            resolver = await super().resolver()
            resolver.port = server.transport.get_extra_info("sockname")[1]
            return resolver

    file = tmp_path / "resolv.conf"
    file.write_text("nameserver 127.0.0.1\nsearch lan.test\n")
    lookup = DnsLookup(AtPort(file), hosts_file, FakeClock().monotonic)
    yield lookup
    lookup.close()


async def test_names_of_the_hosts_file_are_not_asked_for(lookup: DnsLookup, server: NameServer) -> None:
    assert await lookup("inside.TEST") == ["192.0.2.7"]
    assert await lookup("other.test.") == ["192.0.2.7"]
    assert await lookup("six.test") == ["::9"]
    assert await lookup("localhost") == ["127.0.0.1"]
    assert await lookup("any.localhost") == ["127.0.0.1", "::1"]
    assert server.asked == []


async def test_the_hosts_file_is_read_again_when_it_has_changed(lookup: DnsLookup, hosts_file: Path) -> None:
    assert await lookup("inside.test") == ["192.0.2.7"]
    hosts_file.write_text("192.0.2.8 inside.test\n")  # noqa: ASYNC240 - a test may
    os.utime(hosts_file, ns=(1, 1))
    assert await lookup("inside.test") == ["192.0.2.8"]


def test_a_missing_hosts_file_is_empty(tmp_path: Path) -> None:
    assert read_hosts_file(tmp_path / "none") == {}


async def test_both_families(lookup: DnsLookup, server: NameServer) -> None:
    server.records = {("a.test", "A"): ["192.0.2.1", "192.0.2.2"], ("a.test", "AAAA"): ["2001:db8::1"]}
    *ipv4, ipv6 = await lookup("a.test")
    assert (sorted(ipv4), ipv6) == (["192.0.2.1", "192.0.2.2"], "2001:db8::1")
    server.records = {("b.test", "AAAA"): ["2001:db8::2"]}
    assert await lookup("b.test") == ["2001:db8::2"]


async def test_names_without_a_dot_are_looked_up_in_the_local_domain(lookup: DnsLookup, server: NameServer) -> None:
    server.records = {("policy.lan.test", "A"): ["192.0.2.3"]}
    assert await lookup("policy") == ["192.0.2.3"]


@pytest.mark.parametrize("name", ["missing.test", "ümlaut.test", "a" * 64 + ".test", "x." * 200, "", ".."])
async def test_names_without_addresses(lookup: DnsLookup, name: str) -> None:
    with pytest.raises(OSError, match=r"."):
        await lookup(name)


async def test_answers_are_kept_as_long_as_they_say(
    server: NameServer, lookup: DnsLookup, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = FakeClock()
    monkeypatch.setattr(lookup, "_monotonic", clock.monotonic)
    server.records = {("a.test", "A"): ["192.0.2.1"]}
    await lookup("a.test")
    asked = len(server.asked)
    server.records = {("a.test", "A"): ["192.0.2.2"]}
    clock.advance(59_000)
    assert await lookup("a.test") == ["192.0.2.1"]
    assert len(server.asked) == asked
    clock.advance(2_000)
    assert await lookup("a.test") == ["192.0.2.2"]


async def test_a_name_that_does_not_exist_is_not_asked_for_again_at_once(lookup: DnsLookup, server: NameServer) -> None:
    for _ in range(3):
        with pytest.raises(OSError, match="exist"):
            await lookup("missing.test")
    assert server.asked.count("missing.test A") == 1


async def test_all_who_need_a_name_share_one_question(lookup: DnsLookup, server: NameServer) -> None:
    server.records = {("a.test", "A"): ["192.0.2.1"]}
    found = await asyncio.gather(*(lookup("a.test") for _ in range(50)))
    assert found == [["192.0.2.1"]] * 50
    assert server.asked.count("a.test A") == 1


async def test_slow_names_delay_no_others(
    lookup: DnsLookup, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than any pool of threads would have, none of which gets an answer."""
    server.records = {("a.test", "A"): ["192.0.2.1"]}
    monkeypatch.setattr(subject, "LOOKUP_SECONDS_MAX", 10 * WAIT_S)
    server.slow_expected = 120
    slow = [asyncio.ensure_future(lookup(f"slow{number}.test")) for number in range(60)]
    async with asyncio.timeout(WAIT_S):
        await server.all_slow_asked.wait()
        assert await lookup("a.test") == ["192.0.2.1"]
    assert not any(task.done() for task in slow)
    lookup.close()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_a_name_server_that_ignores_one_kind_of_question(
    lookup: DnsLookup, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "SECOND_FAMILY_SECONDS", 0.0)
    answer = server.datagram_received

    def only_a(data: bytes, address: tuple[str, int]) -> None:
        if dns.message.from_wire(data).question[0].rdtype == 1:
            answer(data, address)

    monkeypatch.setattr(server, "datagram_received", only_a)
    server.records = {("a.test", "A"): ["192.0.2.1"]}
    async with asyncio.timeout(WAIT_S):
        assert await lookup("a.test") == ["192.0.2.1"]
