"""netlink: hears of links, addresses, routes and nexthops, and holds the routes of the peers.

The effector of link_failover. It touches only what carries our `rtm_protocol`, keeps a belief of what the
kernel has, and reads it back after anything that may have changed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import numpy as np

from mapek.bpf.worker import in_thread
from mapek.config.options import take
from mapek.contracts import Options, Status, Surroundings, Touchpoint, Variant
from mapek.errors import NetlinkError, PermanentError
from mapek.model import Applied, Entity, Event, Frame, Metric, Schema, Step
from mapek.sensors import netlink_wire as wire
from mapek.sensors.netlink_events import Decoder, subscribe
from mapek.sensors.netlink_routes import FIRST_ID, PeerRoutes
from mapek.sensors.variants import choose

if TYPE_CHECKING:
    from mapek.knowledge.topology import Peer

SCHEMA: Final = Schema(
    "netlink",
    "link",
    gauges=(
        Metric("up", "", "1 if the interface is administratively up."),
        Metric("carrier", "", "1 if the interface has a carrier."),
    ),
)

READ_BACK_NS: Final = 2_000_000
"""After a move: late enough to stay out of its way, early enough to catch a flush that crossed it."""


class Netlink(Touchpoint):
    """Touchpoint `netlink`. Actions "use_path" and "hold", both with fields `peer` and `path`.

    Options:
        metric: of the routes that move.
        standing_metric: of the routes that stay, one per path, counted up from here.
        nexthops: "auto", or "no" for replacing each route (what kernels before 5.3 get).

    Needs CAP_NET_ADMIN to act.
    """

    name: ClassVar[str] = "netlink"
    counted: ClassVar[Mapping[str, str]] = {
        "overruns": "Netlink messages lost because the socket was full.",
        "repairs": "Times the kernel was not where we believed it to be.",
        "moves": "Changes of a peer's path.",
        "undecoded": "Netlink messages that could not be decoded.",
    }
    variants: ClassVar[tuple[Variant, ...]] = (
        Variant("nexthop", ("CAP_NET_ADMIN", "nexthop"), "one message moves all routes of a peer"),
        Variant("routes", ("CAP_NET_ADMIN",), "routes are moved one by one"),
    )
    kind: ClassVar[Literal["sensor", "effector"]] = "effector"

    def __init__(self, options: Options) -> None:
        self._metric = take(options, "metric", int, 100, minimum=1, maximum=2**31)
        self._standing_metric = take(options, "standing_metric", int, 10_000, minimum=2, maximum=2**31)
        objects = take(options, "nexthops", str, "auto", choices=("auto", "no")) == "auto"
        self.wanted_variant = "auto" if objects else "routes"
        self._objects = objects
        self._around: Surroundings | None = None
        self._messenger: wire.Messenger | None = None
        self._heard: socket.socket | None = None
        self._laying: asyncio.Task[dict[str, str]] | None = None
        self._decoder = Decoder()
        self._asked: dict[str, int] = {}
        """The interfaces of the paths as the kernel found them, also by an alternative name; asked once, in a thread:
        for a name that is away it runs modprobe, and waits for it."""
        self._routes: dict[str, PeerRoutes] = {}
        self._current: dict[str, str] = {}
        self._doubtful: set[str] = set()
        """Peers whose routes the kernel may have flushed."""
        self._counts = {"overruns": 0, "repairs": 0, "moves": 0}
        self._degraded: list[str] = []

    async def open(self, surroundings: Surroundings) -> None:
        """Subscribe, learn the links, lay the standing routes, and adopt what an earlier agent left."""
        self._around = surroundings
        self._degraded = []
        peers = list(surroundings.knowledge.topology.peers.values())
        choice = await in_thread(lambda: choose(self.name, self.variants, self.wanted_variant))
        self._objects = choice.variant.name == "nexthop"
        self._degraded.extend(choice.degraded())
        self._heard = subscribe()
        self._messenger = wire.Messenger()
        # Shielded: an open that is cancelled leaves the thread at work on the messenger, and `close` waits for it.
        self._laying = asyncio.ensure_future(in_thread(lambda: self._lay(peers)))
        adopted = await asyncio.shield(self._laying)
        asyncio.get_running_loop().add_reader(self._heard.fileno(), self._hear)
        for peer, path in adopted.items():
            self._now_on(peer, path, surroundings.clock.now_ns())

    def _lay(self, peers: list[Peer]) -> dict[str, str]:
        """In a thread: find free ids, prepare and lay the standing routes; returns what was found in place."""
        assert self._messenger is not None
        assert self._around is not None
        topology = self._around.knowledge.topology
        for kind, body in self._messenger.dump(wire.RTM_GETLINK):
            self._decoder.learn(kind, body)
        for name in {path.interface for path in topology.paths()}:
            with contextlib.suppress(OSError):
                self._asked[name] = socket.if_nametoindex(name)
        found = {}
        if self._objects and peers:
            for _, body in self._messenger.dump(wire.RTM_GETNEXTHOP):
                if fields := wire.nexthop_fields(body):
                    found[fields[0]] = fields
        self._spare_foreign(peers)
        adopted = {}
        ident = FIRST_ID
        for peer in peers:
            while ident in found and found[ident][1] != wire.PROTOCOL:
                ident += 1
            routes = self._routes[peer.name] = PeerRoutes(peer, ident, self._objects)
            routes.prepare(topology.addresses, self._metric, self._standing_metric, self._links())
            if ident in found and (path := routes.path_of(found[ident][2], found[ident][3])):
                adopted[peer.name] = path
            ident += 1
            self._stand(routes)
        return adopted

    def _links(self) -> dict[str, int]:
        """The numbers of the interfaces that are there, by name."""
        there = self._decoder.links
        other_names = {name: ifindex for name, ifindex in self._asked.items() if ifindex in there}
        return other_names | {link.name: ifindex for ifindex, link in there.items()}

    def _spare_foreign(self, peers: list[Peer]) -> None:
        """Refuse to replace somebody else's route: same prefix and metric is the same route to the kernel."""
        assert self._messenger is not None
        ours = {str(prefix) for peer in peers for prefix in peer.prefixes}
        most = max((len(peer.paths) for peer in peers), default=0)
        metrics = {self._metric, *range(self._standing_metric, self._standing_metric + most)}
        for family in (socket.AF_INET, socket.AF_INET6):
            for _, body in self._messenger.dump(wire.RTM_GETROUTE, family):
                found = self._decoder.route(body)
                if found is None or found["prefix"] not in ours or found["metric"] not in metrics:
                    continue
                if found["protocol"] != wire.PROTOCOL:
                    on = f"route {found['prefix']} metric {found['metric']}"
                    why = f"somebody else's route is there (protocol {found['protocol']})"
                    raise PermanentError(
                        "lay", on, why, "remove it, or set other metrics in [sensors.netlink]"
                    )

    def _stand(self, routes: PeerRoutes) -> None:
        """Lay the standing routes; one whose link is down cannot be laid now, and is when it is back."""
        assert self._messenger is not None
        for path, messages in routes.standing.items():
            if not messages:
                continue
            try:
                self._messenger.send(messages, "lay the standing route", path)
            except NetlinkError:
                self._doubtful.add(routes.peer.name)

    async def close(self) -> None:
        """Stop listening; the routes stay, as the last agent left them."""
        if self._heard is not None:
            asyncio.get_running_loop().remove_reader(self._heard.fileno())
            self._heard.close()
            self._heard = None
        if self._laying is not None:
            # Closed under it, its socket's number would be the next one's, and each would take the other's answers.
            await asyncio.gather(asyncio.shield(self._laying), return_exceptions=True)
            self._laying = None
        if self._messenger is not None:
            self._messenger.close()
            self._messenger = None

    def _hear(self) -> None:
        around, heard = self._around, self._heard
        assert around is not None
        overrun = False
        while heard is not None:
            try:
                data = heard.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                # ENOBUFS: messages were lost, so nothing that we believe is sure
                self._counts["overruns"] += 1
                overrun = True
                continue
            for event in self._decoder.events(data, around.clock.now_ns):
                self._judge(event)
            heard = self._heard
        if overrun:
            self._learn_anew()

    def _learn_anew(self) -> None:
        """After an overrun, and after what was still queued: ask for what was missed. Here and not in a thread,
        where the answer would be older than what is heard meanwhile."""
        around, messenger = self._around, self._messenger
        if around is None or messenger is None:
            return
        now = around.clock.now_ns()
        for event in self._decoder.refreshed(messenger.dump(wire.RTM_GETLINK), now):
            self._judge(event)
        for peer in self._routes:
            self._doubtful.add(peer)
            around.emit(Event(now, Entity("peer", peer), "netlink.overrun"))

    def _judge(self, event: Event) -> None:
        """Emit what matters: links and addresses, and routes and nexthops only where they are ours."""
        assert self._around is not None
        if event.kind.startswith("nexthop."):
            peer = next((p for p, r in self._routes.items() if r.ident == event.fields["nexthop"]), None)
            if peer is None or not self._foreign_hand(peer, event):
                return
            self._doubtful.add(peer)
            event = Event(event.time_ns, Entity("peer", peer), event.kind, event.fields)
        elif event.kind.startswith("route."):
            if event.fields["protocol"] != wire.PROTOCOL or event.kind == "route.new":
                return
            peer = next(
                (
                    p
                    for p, r in self._routes.items()
                    if event.fields["prefix"] in [str(x) for x in r.peer.prefixes]
                ),
                None,
            )
            if peer is None:
                return
            self._doubtful.add(peer)
            event = Event(event.time_ns, Entity("peer", peer), event.kind, event.fields)
        elif event.kind in ("link.new", "link.up", "link.renamed", "link.gone", "link.down"):
            self._prepare_again(event)
        self._around.emit(event)

    def _foreign_hand(self, peer: str, event: Event) -> bool:
        """Is this not the echo of our own message?"""
        if event.kind == "nexthop.gone":
            return True
        current = self._current.get(peer)
        return current is None or self._routes[peer].ifindexes.get(current) != event.fields["ifindex"]

    def _prepare_again(self, event: Event) -> None:
        assert self._around is not None
        for peer, routes in self._routes.items():
            if any(path.interface == event.entity.name for path in routes.peer.paths):
                topology = self._around.knowledge.topology
                routes.prepare(topology.addresses, self._metric, self._standing_metric, self._links())
                self._doubtful.add(peer)
                if event.kind in ("link.new", "link.up"):
                    self._stand(routes)
                    self._lay_again(routes, event.entity.name)

    def _lay_again(self, routes: PeerRoutes, interface: str) -> None:
        """The kernel flushed the object with its link, and says nothing of it: as it was asked for, once more."""
        assert self._messenger is not None
        current = self._current.get(routes.peer.name)
        over = [path.entity.name for path in routes.peer.paths if path.interface == interface]
        if current in over and current in routes.whole:
            try:
                self._messenger.send(routes.whole[current], "lay again", current)
                self._counts["repairs"] += 1
            except NetlinkError:
                return  # it stays in doubt, and the next move lays it whole

    async def act(self, step: Step) -> Applied:
        return self.act_now(step)

    def act_now(self, step: Step) -> Applied:
        """ "use_path" moves all routes of a peer; "hold" lays all of them anew, and reads them back.

        Raises:
            NetlinkError, PrivilegeError: the kernel refused.
            PermanentError: no such peer or path, or its interface is not there.
        """
        assert self._around is not None
        peer, path = str(step.fields.get("peer")), str(step.fields.get("path"))
        routes = self._routes.get(peer)
        if self._messenger is None or routes is None or path not in routes.moves:
            known = ", ".join(routes.moves) if routes else ", ".join(self._routes)
            raise PermanentError(
                step.action, f"{peer} over {path}", "no such path is prepared", f"known: {known}"
            )
        if step.action not in ("use_path", "hold"):
            raise PermanentError(step.action, self.name, "no such action", "known: use_path, hold")
        whole = step.action == "hold" or peer in self._doubtful or peer not in self._current
        before = self._current.get(peer)
        self._messenger.send(routes.whole[path] if whole else routes.moves[path], step.action, path)
        acked = self._around.clock.now_ns()
        self._counts["moves"] += before != path
        changed = before != path or whole
        self._current[peer] = path
        self._doubtful.discard(peer)
        self._now_on(peer, path, acked, before or "")
        self._around.clock.call_at(acked + READ_BACK_NS, lambda: self._read_back(peer, whole))
        return Applied(acked, changed, f"{before or 'nothing'} -> {path}")

    def _now_on(self, peer: str, path: str, at_ns: int, before: str = "") -> None:
        assert self._around is not None
        self._current[peer] = path
        fields = {"peer": peer, "before": before}
        self._around.emit(Event(at_ns, Entity("path", path), "path.active", fields))

    def _read_back(self, peer: str, stand: bool) -> None:
        """Is the kernel where we believe it is? If not, say so: the policy decides what to do."""
        around, messenger, routes = self._around, self._messenger, self._routes.get(peer)
        if around is None or messenger is None or routes is None:
            return
        if stand:
            self._stand(routes)
        if not routes.objects:
            return
        body = messenger.get_nexthop(routes.ident)
        found = wire.nexthop_fields(body) if body else None
        path = routes.path_of(found[2], found[3]) if found else None
        if path != self._current.get(peer):
            self._counts["repairs"] += 1
            self._doubtful.add(peer)
            fields = {"expected": self._current.get(peer, ""), "found": path or "nothing"}
            around.emit(Event(around.clock.now_ns(), Entity("peer", peer), "nexthop.differs", fields))

    def schema(self) -> Schema:
        return SCHEMA

    def read(self) -> Frame | None:
        """One row per interface of a path, from what was heard: no system call."""
        if self._around is None:
            return None
        topology = self._around.knowledge.topology
        names = dict.fromkeys(path.interface for path in topology.paths())
        links = {link.name: link for link in self._decoder.links.values()}
        rows = [links.get(name) for name in names]
        gauges = np.array(
            [[row.up, row.carrier] if row else [0, 0] for row in rows], dtype=np.float64
        ).reshape(-1, 2)
        entities = tuple(
            Entity("link", name, row.ifindex if row else 0) for name, row in zip(names, rows, strict=True)
        )
        valid = np.array([row is not None for row in rows], dtype=np.bool_)
        return Frame(
            self._around.clock.now_ns(), SCHEMA, entities, np.zeros((len(rows), 0), np.uint64), gauges, valid
        )

    def status(self) -> Status:
        attached = {f"routes to {peer}": path for peer, path in self._current.items()}
        counts = {**self._counts, "undecoded": self._decoder.undecoded}
        return Status(self._heard is not None, attached, tuple(self._degraded), counts)
